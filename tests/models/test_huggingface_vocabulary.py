"""Vocabularies of another size: the old rows stay, configuration and checkpoint follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from linrec import models
from linrec.errors import ConfigError

transformers = pytest.importorskip("transformers")
from linrec.models.huggingface import LinrecForCausalLM  # noqa: E402


def small(tied: bool, **changes: Any) -> Any:
    torch.manual_seed(11)
    config = models.Config(vocab_size=50, d_model=16, num_heads=2, tie_embeddings=tied, **changes)
    return LinrecForCausalLM.from_linrec(models.LanguageModel(config).eval())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"new_num_tokens": 60}, 60),
        ({"new_num_tokens": 60, "mean_resizing": False}, 60),
        ({"new_num_tokens": 41}, 41),
        ({"new_num_tokens": 51, "pad_to_multiple_of": 8}, 56),
        ({"pad_to_multiple_of": 64}, 64),
        ({"new_num_tokens": 50}, 50),
        ({}, 50),
    ],
)
def test_another_size(tmp_path: Path, tied: bool, options: dict[str, Any], size: int) -> None:
    face = small(tied)
    ids = torch.randint(0, 40, (2, 7))
    before = face(ids).logits
    embeddings = face.resize_token_embeddings(**options)
    assert embeddings is face.get_input_embeddings() and embeddings.num_embeddings == size
    assert face.config.vocab_size == face.model.config.vocab_size == face.config.linrec["vocab_size"] == size
    head = face.get_output_embeddings()
    assert head is face.model.head and head.weight.shape == (size, 16) and head.out_features == size
    assert (head.weight is embeddings.weight) is tied
    after = face(ids, labels=ids)
    assert after.logits.shape == (2, 7, size)
    torch.testing.assert_close(after.logits[..., : min(size, 50)], before[..., : min(size, 50)])
    if size > 50:
        added = embeddings.weight[50:].detach()
        assert bool(added.isfinite().all()) and float(added.std()) < 0.1
        face(torch.full((1, 3), size - 1))
    face.save_pretrained(tmp_path)
    for again in (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path),
        models.LanguageModel.load(tmp_path),
    ):
        assert torch.equal(again(ids).logits, after.logits)
    face.model.save(tmp_path / "plain")
    assert torch.equal(models.LanguageModel.load(tmp_path / "plain")(ids).logits, after.logits)


def test_generation_and_training_after_it(prompt: Tensor) -> None:
    face = small(True, eos_token_id=49)
    face.resize_token_embeddings(96)
    out = face.generate(prompt % 96, max_new_tokens=4, do_sample=False, prompt_lookup_num_tokens=None)
    assert out.shape == (2, 13)
    face.train()
    face(prompt % 96, labels=prompt % 96).loss.backward()
    assert face.model.embed.weight.grad.shape == (96, 16)


def test_special_tokens_must_stay_inside() -> None:
    face = small(True, eos_token_id=49)
    with pytest.raises(ConfigError, match="eos_token_id"):
        face.resize_token_embeddings(40)
    assert face.model.embed.num_embeddings == face.config.vocab_size == 50


def test_a_tied_head_stays_tied() -> None:
    face = small(True)
    face.tie_weights()
    assert face.config.tie_word_embeddings and not small(False).config.tie_word_embeddings
    face.set_output_embeddings(face.get_input_embeddings())
    face.set_output_embeddings(None)
    with pytest.raises(ConfigError, match="tie_embeddings"):
        face.set_output_embeddings(torch.nn.Linear(16, 50, bias=False))
    new = torch.nn.Embedding(50, 16)
    face.set_input_embeddings(new)
    ids = torch.arange(6)[None]
    assert face.get_input_embeddings() is new
    torch.testing.assert_close(
        face(ids).logits, face(ids, output_hidden_states=True).hidden_states[-1] @ new.weight.T
    )
    own = small(False)
    head = torch.nn.Linear(16, 50, bias=False)
    own.set_output_embeddings(head)
    torch.testing.assert_close(own(ids).logits, head(own(ids, output_hidden_states=True).hidden_states[-1]))
