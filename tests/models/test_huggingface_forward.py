"""The keywords of a forward call: each is honoured, or refused by its name."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from linrec import models
from linrec.errors import ArgumentError, ConfigError, DtypeError, LinrecError, RangeError, ShapeError

transformers = pytest.importorskip("transformers")
from linrec.models.huggingface import LinrecConfig  # noqa: E402


@pytest.mark.parametrize("name", ["positions_ids", "token_type_ids", "cache_position", "attention_masks"])
@pytest.mark.parametrize("value", [None, 1])
def test_unknown_keywords_are_refused_by_name(face: Any, prompt: Tensor, name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"'{name}' is not known.*position_ids"):
        face(prompt, **{name: value})
    with pytest.raises(ValueError, match="not used by the model"):
        face.generate(prompt, max_new_tokens=2, **{name: torch.ones(1)})


@pytest.mark.parametrize(("name", "value"), [("output_attentions", True), ("is_causal", False)])
def test_what_cannot_be_honoured_is_refused(face: Any, prompt: Tensor, name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=name):
        face(prompt, **{name: value})
    face(prompt, **{name: None})


def test_attentions_are_refused_in_generate(face: Any, prompt: Tensor) -> None:
    with pytest.raises(ArgumentError, match="output_attentions"):
        face.generate(prompt, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)
    with pytest.raises(ConfigError, match="cache_implementation"):
        face.generate(prompt, max_new_tokens=2, cache_implementation="static")


def test_hidden_states_are_those_between_the_blocks(
    hybrid: models.LanguageModel, face: Any, prompt: Tensor
) -> None:
    expected: list[Tensor] = []
    for block in hybrid.blocks:
        block.register_forward_pre_hook(lambda _, args: expected.append(args[0]))
    hybrid.norm.register_forward_hook(lambda _, args, out: expected.append(out))
    out = face(prompt, output_hidden_states=True)
    assert len(out.hidden_states) == 4
    assert all(torch.equal(a, b) for a, b in zip(out.hidden_states, expected, strict=True))
    assert torch.equal(hybrid.embed(prompt), out.hidden_states[0])
    assert torch.equal(hybrid.logits(out.hidden_states[-1]), out.logits)
    assert face(prompt).hidden_states is None
    face.config.output_hidden_states = True
    assert len(face(prompt).hidden_states) == 4


def test_hidden_states_of_generate(face: Any, prompt: Tensor) -> None:
    out = face.generate(
        prompt, max_new_tokens=3, do_sample=False, output_hidden_states=True, return_dict_in_generate=True
    )
    assert [[h.shape[1] for h in step] for step in out.hidden_states] == [[9] * 4, [1] * 4, [1] * 4]


def test_embeddings_stand_for_tokens(hybrid: models.LanguageModel, face: Any, prompt: Tensor) -> None:
    mask = torch.ones_like(prompt)
    mask[1, :4] = 0
    embeds = hybrid.embed(prompt)
    for extra in (
        {},
        {"attention_mask": mask},
        {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2]])},
    ):
        want, got = face(prompt, labels=prompt, **extra), face(inputs_embeds=embeds, labels=prompt, **extra)
        assert torch.equal(want.logits, got.logits)
        assert torch.equal(want.loss, got.loss)
    first = face(inputs_embeds=embeds[:, :5])
    torch.testing.assert_close(face(prompt[:, 5:], cache=first.cache).logits, hybrid(prompt).logits[:, 5:])
    with pytest.raises(ArgumentError, match="got both"):
        face(prompt, inputs_embeds=embeds)
    with pytest.raises(ArgumentError, match="got neither"):
        face()
    with pytest.raises(ShapeError, match="d_model = 32"):
        face(inputs_embeds=embeds[..., :5])
    with pytest.raises(DtypeError, match="floating-point"):
        face(inputs_embeds=embeds.long())


def test_generate_from_embeddings(hybrid: models.LanguageModel, face: Any, prompt: Tensor) -> None:
    mask = torch.ones_like(prompt)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    expected = face.generate(prompt, **options)[:, 9:]
    for beams in (1, 2):
        expected = face.generate(prompt, num_beams=beams, **options)
        got = face.generate(inputs_embeds=hybrid.embed(prompt), num_beams=beams, **options)
        assert torch.equal(got, expected[:, 9:])
        got = face.generate(prompt, inputs_embeds=hybrid.embed(prompt), num_beams=beams, **options)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["state", "cache", "past_key_values", "cache_params"])
def test_every_name_of_the_state(hybrid: models.LanguageModel, face: Any, prompt: Tensor, name: str) -> None:
    expected = hybrid(prompt).logits[:, 5:]
    first = face(prompt[:, :5])
    for value in (first.cache, first.state, first.past_key_values, hybrid(prompt[:, :5]).state):
        torch.testing.assert_close(face(prompt[:, 5:], **{name: value}).logits, expected)
    for wrong in (transformers.DynamicCache(), ((prompt, prompt),), 3):
        with pytest.raises(ArgumentError, match=f"{name}: expected a LinrecCache"):
            face(prompt, **{name: wrong})
    with pytest.raises(ArgumentError, match="expected one cache"):
        face(prompt, state=first.state, cache=first.cache)


def test_masks_may_cover_what_was_read(hybrid: models.LanguageModel, face: Any, prompt: Tensor) -> None:
    mask = torch.ones_like(prompt)
    mask[1, :4] = 0
    expected = hybrid(prompt, attention_mask=mask).logits[:, 6:]
    cache = face(prompt[:, :6], attention_mask=mask[:, :6]).cache
    torch.testing.assert_close(face(prompt[:, 6:], cache=cache, attention_mask=mask).logits, expected)
    with pytest.raises(ArgumentError, match="differs from the one"):
        face(prompt[:, 6:], cache=cache, attention_mask=torch.ones_like(mask))
    with pytest.raises(ShapeError, match=r"or \[2, 9\]"):
        face(prompt[:, 6:], cache=cache, attention_mask=mask[:, 1:])


def test_which_logits_are_kept(face: Any, prompt: Tensor) -> None:
    everything = face(prompt).logits
    for keep, want in ((0, everything), (2, everything[:, -2:]), (20, everything)):
        assert torch.equal(face(prompt, logits_to_keep=keep).logits, want)
    index = torch.tensor([1, 4])
    torch.testing.assert_close(face(prompt, logits_to_keep=index).logits, everything[:, index])
    for refused in (-1, 2, index):
        with pytest.raises(ArgumentError, match="logits_to_keep"):
            face(prompt, logits_to_keep=refused, labels=prompt)


def test_outputs_as_a_tuple_and_without_a_cache(face: Any, prompt: Tensor) -> None:
    loss, logits, cache = face(prompt, labels=prompt, return_dict=False)
    assert loss.dim() == 0 and logits.shape == (2, 9, 97) and cache.get_seq_length() == 9
    assert face(prompt, use_cache=False).cache is None
    face.config.return_dict = False
    assert isinstance(face(prompt), tuple)


def test_labels_and_their_options(face: Any, prompt: Tensor) -> None:
    logits = face(prompt).logits[:, :-1].flatten(0, 1)
    target = prompt[:, 1:].flatten()
    total = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    torch.testing.assert_close(face(prompt, labels=prompt, num_items_in_batch=5).loss, total / 5)
    ignored = int(target[3])
    kept = torch.nn.functional.cross_entropy(logits, target, ignore_index=ignored)
    torch.testing.assert_close(face(prompt, labels=prompt, ignore_index=ignored).loss, kept)
    with pytest.raises(ShapeError, match="labels"):
        face(prompt, labels=prompt[:, 1:])
    with pytest.raises(ShapeError, match="shift_labels"):
        face(prompt, shift_labels=prompt[:, 1:])
    with pytest.raises(ArgumentError, match="the loss needs every logit"):
        face(prompt, shift_labels=prompt, logits_to_keep=2)


def test_labels_that_contradict_each_other(face: Any, prompt: Tensor) -> None:
    shifted = torch.cat([prompt[:, 1:], prompt[:, :1]], 1)
    both = face(prompt, labels=prompt, shift_labels=shifted).loss
    torch.testing.assert_close(both, face(prompt, shift_labels=shifted).loss)
    with pytest.raises(ArgumentError, match="labels and shift_labels contradict"):
        face(prompt, labels=prompt, shift_labels=prompt)


MASKS = {
    "documents": torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 2]] * 2),
    "added to scores": torch.tensor([[0.0] * 5 + [float("-inf")] * 4] * 2),
    "shares": torch.full((2, 9), 0.5),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_say_nothing_but_real_or_not(
    hybrid: models.LanguageModel, face: Any, prompt: Tensor, kind: str
) -> None:
    """A packed row whose mask holds numbers of documents was read as one document."""
    mask = MASKS[kind]
    calls: tuple[Any, ...] = (face, partial(face.generate, max_new_tokens=2), hybrid, hybrid.prefill)
    for call in calls:
        with pytest.raises(RangeError, match="expected 1 at real tokens and 0 at padding"):
            call(prompt, attention_mask=mask)
    layer: Any = hybrid.blocks[0].mixer
    with pytest.raises(RangeError, match="expected 1 at real tokens"):
        layer(torch.zeros(2, 9, 32), attention_mask=mask)
    assert torch.equal(face(prompt, attention_mask=torch.ones(2, 9)).logits, face(prompt).logits)


def test_configurations_take_no_strange_names() -> None:
    config = models.Config(d_model=16, num_heads=2)
    assert LinrecConfig.from_linrec(config, use_cache=False, dtype="float32").use_cache is False
    assert LinrecConfig.from_linrec(config, vocab_size=257, tie_word_embeddings=True).to_linrec() == config
    with pytest.raises(ConfigError, match="did you mean 'use_cache'"):
        LinrecConfig.from_linrec(config, use_cahce=False)
    for wrong in ({"vocab_size": 300}, {"tie_word_embeddings": False}, {"d_model": 32}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            LinrecConfig(linrec=config.to_dict(), **wrong)
    assert issubclass(ArgumentError, LinrecError)
