"""The Hugging Face face: one checkpoint format in both directions, and generate() equal to a plain loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from linrec import models
from linrec.errors import ConfigError

transformers = pytest.importorskip("transformers")
from linrec.models.huggingface import LinrecConfig, LinrecForCausalLM  # noqa: E402
from tests.models.greedy import NEW, greedy  # noqa: E402


def test_plain_checkpoint_to_transformers_and_back(
    hybrid: models.LanguageModel, prompt: Tensor, tmp_path: Path
) -> None:
    hybrid.save(tmp_path / "plain")
    face = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert isinstance(face, LinrecForCausalLM)
    assert face.config.eos_token_id == 96
    assert torch.equal(face(prompt).logits, hybrid(prompt).logits)
    face.save_pretrained(tmp_path / "hf", max_shard_size="30KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    assert models.LanguageModel.load(tmp_path / "hf").fingerprint() == hybrid.fingerprint()


def test_config_registration_and_round_trip(tmp_path: Path) -> None:
    config = models.preset("demo-hybrid", layer_options={"softmax_attention": {"qk_norm": True}})
    LinrecConfig.from_linrec(config).save_pretrained(tmp_path)
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert again.to_linrec() == config
    assert (again.vocab_size, again.hidden_size, again.num_hidden_layers) == (257, 128, 4)
    with pytest.raises(ConfigError, match="did you mean 'd_model'"):
        LinrecConfig(linrec={"dmodel": 8})


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_equals_the_plain_loop(
    hybrid: models.LanguageModel, face: LinrecForCausalLM, prompt: Tensor, use_cache: bool
) -> None:
    mask = torch.ones_like(prompt)
    out = face.generate(prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False, use_cache=use_cache)
    assert torch.equal(out, greedy(hybrid, prompt))


def test_left_padded_batch_equals_single_rows(
    hybrid: models.LanguageModel, face: LinrecForCausalLM, prompt: Tensor
) -> None:
    mask = torch.ones_like(prompt)
    mask[1, :4] = 0
    out = face.generate(prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(out[:1], greedy(hybrid, prompt[:1]))
    assert torch.equal(out[1:, 4:], greedy(hybrid, prompt[1:, 4:]))


def test_the_state_is_the_cache(face: LinrecForCausalLM, prompt: Tensor) -> None:
    lengths = []
    handle = face.model.embed.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    face.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)
    handle.remove()
    assert lengths == [9, 1, 1, 1]


def test_beams_follow_their_states(face: LinrecForCausalLM, prompt: Tensor) -> None:
    mask = torch.ones_like(prompt)
    mask[0, :2] = 0
    runs = [
        face.generate(
            prompt, attention_mask=mask, max_new_tokens=8, num_beams=3, do_sample=False, use_cache=cached
        )
        for cached in (True, False)
    ]
    assert torch.equal(*runs)


def test_sampling_follows_the_seed(face: LinrecForCausalLM, prompt: Tensor) -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        mask = torch.ones_like(prompt)
        out: Tensor = face.generate(
            prompt, attention_mask=mask, max_new_tokens=8, do_sample=True, top_k=0, num_return_sequences=2
        )
        return out

    assert draw(1).shape == (4, 17)
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_stops_at_the_end_token(
    hybrid: models.LanguageModel, face: LinrecForCausalLM, prompt: Tensor
) -> None:
    expected = greedy(hybrid, prompt[:1])[0, 9:].tolist()
    out = face.generate(prompt[:1], max_new_tokens=NEW, do_sample=False, eos_token_id=expected[3])
    assert out[0, 9:].tolist() == expected[: expected.index(expected[3]) + 1]


def test_loss_is_the_shifted_cross_entropy(face: LinrecForCausalLM, prompt: Tensor) -> None:
    labels = prompt.clone()
    labels[:, :3] = -100
    out = face(prompt, labels=labels)
    logits, target = out.logits[:, 2:-1].flatten(0, 1), prompt[:, 3:].flatten()
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(logits, target))
