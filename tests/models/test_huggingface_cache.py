"""A conversation that goes on: what generate returns as its cache, handed back, is generation from nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from linrec import models
from linrec.errors import ArgumentError, ShapeError
from linrec.layers import LAYERS
from linrec.state import map_tensors, named_tensors
from tests.models.greedy import greedy

transformers = pytest.importorskip("transformers")
from linrec.models.huggingface import LinrecForCausalLM  # noqa: E402
from linrec.models.read_cache import LinrecCache  # noqa: E402

NAMES = ("cache", "state", "past_key_values", "cache_params")
GREEDY: dict[str, Any] = {"max_new_tokens": 7, "do_sample": False}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "do_sample": False},
    "all beams": {"num_beams": 3, "num_return_sequences": 3, "do_sample": False},
    "sampled beams": {"num_beams": 3, "num_return_sequences": 2, "do_sample": True},
}


@pytest.fixture
def more() -> Tensor:
    return torch.randint(1, 96, (1, 4), generator=torch.Generator().manual_seed(3))


def read_lengths(face: Any) -> list[int]:
    """Fills with the columns of every call of the embedding."""
    lengths: list[int] = []
    face.model.embed.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    return lengths


def first_turn(face: Any, prompt: Tensor, mask: Tensor | None, **options: Any) -> Any:
    torch.manual_seed(5)
    return face.generate(
        prompt, attention_mask=mask, max_new_tokens=6, return_dict_in_generate=True, **options
    )


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_conversation_goes_on(face: Any, prompt: Tensor, more: Tensor, mode: str, padded: bool) -> None:
    mask = torch.ones_like(prompt)
    mask[0, : 3 * padded] = 0
    first = first_turn(face, prompt, mask, **MODES[mode])
    rows = len(first.sequences)
    whole = torch.cat([first.sequences, more.expand(rows, 4)], 1)
    whole_mask = torch.ones_like(whole)
    whole_mask[:, :9] = mask.repeat_interleave(rows // 2, 0)
    expected = face.generate(whole, attention_mask=whole_mask, **GREEDY)
    lengths = read_lengths(face)
    for name in NAMES:
        got = face.generate(whole, attention_mask=whole_mask, **{name: first.cache}, **GREEDY)
        assert torch.equal(got, expected), name
    # Of all that beams wrote, the last states may be gone.
    assert max(lengths) == 5 or (mode in ("all beams", "sampled beams") and max(lengths) == 10)


@pytest.mark.parametrize("returned", [1, 3])
def test_beams_that_ended_early(face: Any, prompt: Tensor, more: Tensor, returned: int) -> None:
    """Their last states are gone, so that what they wrote is read again."""
    beams = {"num_beams": 3, "num_return_sequences": returned, "do_sample": False}
    end = int(first_turn(face, prompt, None, **beams).sequences[0, 11])
    first = first_turn(face, prompt, None, eos_token_id=end, pad_token_id=0, **beams)
    whole = torch.cat([first.sequences, more.expand(len(first.sequences), 4)], 1)
    for mask in (torch.ones_like(whole), (whole != 0).long()):
        expected = face.generate(whole, attention_mask=mask, **GREEDY)
        assert torch.equal(face.generate(whole, attention_mask=mask, cache=first.cache, **GREEDY), expected)


def test_the_state_of_a_forward_call_goes_on(
    hybrid: models.LanguageModel, face: Any, prompt: Tensor, more: Tensor
) -> None:
    whole = torch.cat([prompt, more.expand(2, 4)], 1)
    expected = greedy(hybrid, whole, 7)
    out = face(prompt)
    lengths = read_lengths(face)
    for given in ({"state": out.state}, {"cache": out.cache}, {"past_key_values": out.past_key_values}):
        assert torch.equal(face.generate(whole, **given, **GREEDY), expected)
    assert lengths == [4, *[1] * 6] * 3
    assert torch.equal(face.generate(input_ids=whole, state=out.state, **GREEDY), expected)
    # Nothing is new: the logits of the last token are in no state, so that the whole is read.
    assert torch.equal(face.generate(whole, state=face(whole).state, **GREEDY), expected)


def test_new_tokens_alone(hybrid: models.LanguageModel, face: Any, prompt: Tensor, more: Tensor) -> None:
    """A mask that covers what was read says so, as in transformers; so do fewer tokens than were read."""
    new = more.expand(2, 4)
    expected = greedy(hybrid, torch.cat([prompt, new], 1), 7)[:, 9:]
    mask = torch.ones(2, 13, dtype=torch.long)
    for state in (face(prompt).state, hybrid(prompt).state, face(prompt).cache):
        for beams in (1, 2):
            got = face.generate(new, state=state, attention_mask=mask, num_beams=beams, **GREEDY)
            if beams == 1:
                assert torch.equal(got, expected)
            else:
                want = face.generate(torch.cat([prompt, new], 1), num_beams=2, **GREEDY)
                assert torch.equal(got, want[:, 9:])
    assert torch.equal(face.generate(new, state=face(prompt).state, **GREEDY), expected)
    longer = torch.cat([new, prompt, new], 1)
    with pytest.raises(ArgumentError, match="do not go on from the 9 tokens"):
        face.generate(longer, state=face(prompt).state, **GREEDY)
    with pytest.raises(ArgumentError, match="do not go on from the 9 tokens"):
        face.generate(prompt[:, :4], state=face(prompt).state, **GREEDY)
    with pytest.raises(ArgumentError, match="do not go on from the 9 tokens"):
        face.generate(new, cache=face(prompt).cache, **GREEDY)


def test_a_plain_state_must_say_what_it_has_read(
    hybrid: models.LanguageModel, face: Any, prompt: Tensor, more: Tensor
) -> None:
    whole = torch.cat([prompt, more.expand(2, 4)], 1)
    state = hybrid(prompt).state
    for ids in (whole, more.expand(2, 4)):
        with pytest.raises(ArgumentError, match=r"ambiguous: give LinrecCache\(state, tokens="):
            face.generate(ids, state=state, **GREEDY)
    got = face.generate(whole, cache=LinrecCache(state, prompt), **GREEDY)
    assert torch.equal(got, greedy(hybrid, whole, 7))


def test_rows_that_ended_early(face: Any, prompt: Tensor, more: Tensor) -> None:
    """Their padding is in the cache as tokens; where the mask says that it is none, the whole is read."""
    end = int(first_turn(face, prompt, None, do_sample=False).sequences[0, 11])
    options = {"eos_token_id": end, "pad_token_id": 0}
    first = first_turn(face, prompt, torch.ones_like(prompt), do_sample=False, **options)
    whole = torch.cat([first.sequences, more.expand(2, 4)], 1)
    for mask in (None, torch.ones_like(whole), (whole != 0).long()):
        expected = face.generate(whole, attention_mask=mask, **GREEDY)
        assert torch.equal(face.generate(whole, attention_mask=mask, cache=first.cache, **GREEDY), expected)


def test_forks_stay_right(hybrid: models.LanguageModel, face: Any, prompt: Tensor, more: Tensor) -> None:
    first = first_turn(face, prompt, None, do_sample=False)
    kept = map_tensors(torch.clone, first.cache.state)
    tokens = first.cache.tokens.clone()
    copied = copy.deepcopy(first.cache)
    whole = torch.cat([first.sequences, more.expand(2, 4)], 1)
    expected = greedy(hybrid, whole, 7)
    for cache in (first.cache, copied):
        for options in ({}, {"num_beams": 2}, {"do_sample": True}):
            face.generate(whole, cache=cache, **{**GREEDY, **options})
        assert torch.equal(face.generate(whole, cache=cache, **GREEDY), expected)
        assert torch.equal(cache.tokens, tokens)
        for (path, a), (_, b) in zip(named_tensors(cache.state), named_tensors(kept), strict=True):
            assert torch.equal(a, b), path


def test_a_long_prompt_in_pieces(
    hybrid: models.LanguageModel, face: Any, prompt: Tensor, more: Tensor
) -> None:
    mask = torch.ones_like(prompt)
    mask[0, :3] = 0
    expected = face.generate(prompt, attention_mask=mask, **GREEDY)
    lengths = read_lengths(face)
    blocks: list[int] = []
    hybrid.blocks[0].register_forward_pre_hook(lambda _, args: blocks.append(args[0].shape[1]))
    assert torch.equal(face.generate(prompt, attention_mask=mask, prefill_chunk_size=4, **GREEDY), expected)
    assert lengths[0] == 9 and blocks[:4] == [4, 4, 1, 1]
    cache = face(prompt).cache
    whole = torch.cat([prompt, more.expand(2, 4)], 1)
    got = face.generate(whole, cache=cache, prefill_chunk_size=3, **GREEDY)
    assert torch.equal(got, greedy(hybrid, whole, 7))
    repeated = prompt[:1, :1].expand(2, 9)
    got = face.generate(repeated, prefill_chunk_size=3, **GREEDY)
    assert torch.equal(got, greedy(hybrid, repeated, 7))


def test_cropping_a_cache(hybrid: models.LanguageModel, face: Any, prompt: Tensor) -> None:
    expected = hybrid(prompt).logits
    cache = face(prompt).cache
    cache.crop(-4)
    assert cache.get_seq_length() == 5
    torch.testing.assert_close(face(prompt[:, 5:], cache=cache).logits, expected[:, 5:])
    with pytest.raises(ArgumentError, match="read with the next call"):
        _ = cache.state
    for wrong in (1, -6):
        with pytest.raises(ArgumentError, match="negative number"):
            cache.crop(wrong)
    embedded = face(inputs_embeds=hybrid.embed(prompt)).cache
    with pytest.raises(ArgumentError, match="embeddings"):
        embedded.crop(-1)


def test_what_does_not_fit_is_refused(face: Any, prompt: Tensor) -> None:
    cache = face(prompt).cache
    with pytest.raises(ShapeError, match="2 rows"):
        face.generate(prompt[:1], cache=cache, **GREEDY)
    with pytest.raises(ShapeError, match="9 columns read"):
        face.generate(prompt, cache=cache, attention_mask=torch.ones(2, 17), **GREEDY)
    with pytest.raises(ShapeError, match=r"attention_mask: expected \[2, 9\]"):
        face.generate(prompt, attention_mask=torch.ones(2, 17), **GREEDY)
    longer = torch.cat([prompt, prompt], 1)
    with pytest.raises(ArgumentError, match="use_cache=False"):
        face.generate(longer, cache=cache, use_cache=False, **GREEDY)
    with pytest.raises(ArgumentError, match="DynamicCache"):
        face.generate(prompt, past_key_values=transformers.DynamicCache(), **GREEDY)
    with pytest.raises(ArgumentError, match="restart inside a row"):
        face.generate(prompt, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5]]), **GREEDY)
    plain = face.generate(prompt, position_ids=torch.arange(9).expand(2, 9), **GREEDY)
    assert torch.equal(plain, face.generate(prompt, **GREEDY))


@pytest.mark.slow
@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_every_layer(layer: str, prompt: Tensor, more: Tensor) -> None:
    """A second turn, with and without drafts, is that of the plain loop."""
    torch.manual_seed(4)
    config = models.Config(vocab_size=97, d_model=32, num_heads=2, init_std=0.1, pattern=(layer,))
    model = models.LanguageModel(config).eval()
    face = LinrecForCausalLM.from_linrec(model)
    first = first_turn(face, prompt[:1], None, do_sample=False, prompt_lookup_num_tokens=3)
    whole = torch.cat([first.sequences, more, first.sequences[:, -4:]], 1)
    expected = greedy(model, whole, 7)
    for drafts in (None, 4):
        got = face.generate(whole, cache=first.cache, prompt_lookup_num_tokens=drafts, **GREEDY)
        assert torch.equal(got, expected)
