"""Training through transformers: recomputed activations give the same gradients, and its Trainer takes packed rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from linrec import models
from linrec.layers import LAYERS
from linrec.state import named_tensors
from tests.models.greedy import greedy

transformers = pytest.importorskip("transformers")
from linrec.models.huggingface import LinrecForCausalLM  # noqa: E402

WAYS: list[dict[str, Any] | None] = [None, {"use_reentrant": False}, {"use_reentrant": True}]


def gradients(face: Any, loss: Tensor) -> list[Tensor]:
    """In float64; zero for parameters that a short sequence does not reach."""
    assert loss.dtype == torch.float64
    face.zero_grad()
    loss.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in face.parameters()]


def loss_of(out: Any, ids: Tensor) -> Tensor:
    """In the dtype of the logits; transformers' own is in float32."""
    return torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def equal(got: Iterable[Tensor], want: Iterable[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=1e-11)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("case", ["plain", "padded", "packed", "continued"])
def test_recomputed_gradients_are_exact(
    face: Any, prompt: Tensor, case: str, way: dict[str, Any] | None
) -> None:
    face.double().train()
    mask = torch.ones_like(prompt)
    mask[1, :4] = 0
    extra = {
        "padded": {"attention_mask": mask},
        "packed": {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3]])},
    }.get(case, {})

    def loss() -> Tensor:
        if case != "continued":
            return loss_of(face(prompt, **extra), prompt)
        first = face(prompt[:, :5])
        second = face(prompt[:, 5:], cache=first.cache)
        states = [t for _, t in named_tensors(second.state) if t.is_floating_point()]
        losses = loss_of(first, prompt[:, :5]) + loss_of(second, prompt[:, 5:])
        return losses + torch.stack([t.sum() for t in states]).sum()

    expected = gradients(face, loss())
    calls: list[None] = []
    face.model.blocks[1].register_forward_pre_hook(lambda *_: calls.append(None))
    face.gradient_checkpointing_enable(gradient_checkpointing_kwargs=way)
    assert face.is_gradient_checkpointing
    equal(gradients(face, loss()), expected)
    reads = 2 if case == "continued" else 1
    assert len(calls) == 2 * reads
    face.gradient_checkpointing_disable()
    equal(gradients(face, loss()), expected)
    assert len(calls) == 3 * reads


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_every_layer(layer: str, reentrant: bool, prompt: Tensor) -> None:
    torch.manual_seed(9)
    config = models.Config(vocab_size=97, d_model=32, num_heads=2, num_layers=2, pattern=(layer,))
    face = LinrecForCausalLM.from_linrec(models.LanguageModel(config).double())
    expected = gradients(face, loss_of(face(prompt), prompt))
    face.gradient_checkpointing_enable({"use_reentrant": reentrant})
    equal(gradients(face, loss_of(face(prompt), prompt)), expected)


def test_frozen_embeddings_and_every_second_block(face: Any, prompt: Tensor) -> None:
    face.double().train()
    face.model.embed.requires_grad_(False)
    trained = [p for p in face.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss_of(face(prompt), prompt), trained)
    calls = [0, 0, 0]

    def count(index: int) -> Any:
        def hook(*_: Any) -> None:
            calls[index] += 1

        return hook

    for index, block in enumerate(face.model.blocks):
        block.register_forward_pre_hook(count(index))
    face.gradient_checkpointing_enable(every_n_layers=2)
    equal(torch.autograd.grad(loss_of(face(prompt), prompt), trained), expected)
    assert calls == [2, 1, 2]
    face.eval()
    face(prompt, labels=prompt).loss.backward()
    assert calls == [3, 2, 3]


def test_generation_between_steps(hybrid: models.LanguageModel, face: Any, prompt: Tensor) -> None:
    face.gradient_checkpointing_enable()
    face.train()
    loss_of(face(prompt), prompt).backward()
    face.eval()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(
                face.generate(prompt, max_new_tokens=12, do_sample=False), greedy(hybrid, prompt)
            )


def packed_trainer(
    model: models.LanguageModel, documents: list[Tensor], folder: str, recomputing: dict[str, bool]
) -> Any:
    """transformers' trainer on documents packed into rows, with activations recomputed."""
    options = transformers.TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=6,
        learning_rate=1e-2,
        logging_steps=1,
        activation_checkpointing=True,
        activation_checkpointing_kwargs=recomputing,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    collator = transformers.DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=True)
    rows = [{"input_ids": d.tolist()} for d in documents]
    return transformers.Trainer(
        model=LinrecForCausalLM.from_linrec(model),
        args=options,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collator,
    )


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_trainer_takes_packed_rows(tmp_path: Path, reentrant: bool) -> None:
    """Two epochs of packed documents, activations recomputed; the first loss is that of the documents alone."""
    pytest.importorskip("accelerate")
    torch.manual_seed(10)
    config = models.Config(vocab_size=97, d_model=32, num_heads=2, pattern=("gated_delta_net", "mamba2"))
    model = models.LanguageModel(config)
    documents = [torch.randint(1, 8, (n,)) for n in (5, 9, 3, 7, 12, 4, 6, 8)]
    summed = sum(
        torch.nn.functional.cross_entropy(model(d[None]).logits[0, :-1], d[1:], reduction="sum")
        for d in documents
    )
    expected = float(torch.as_tensor(summed).detach()) / sum(len(d) - 1 for d in documents)
    trainer = packed_trainer(model, documents, str(tmp_path), {"use_reentrant": reentrant})
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < 0.8 * losses[0]
    assert trainer.evaluate()["eval_loss"] < losses[0]
