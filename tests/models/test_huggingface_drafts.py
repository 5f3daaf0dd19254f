"""Drafted tokens: prompt lookup and an assistant give exactly what the model alone gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from linrec import models
from linrec.models.read_cache import SPACING
from tests.models.greedy import greedy

pytest.importorskip("transformers")
from linrec.models.huggingface import LinrecForCausalLM


@pytest.fixture
def text() -> Tensor:
    """Repetitive, so that some drafts are right and some are not, and longer than the states kept lie apart."""
    half = torch.randint(1, 96, (1, 14), generator=torch.Generator().manual_seed(6))
    text = torch.cat([half, half], 1)
    assert text.shape[1] > SPACING
    return text


@pytest.fixture
def assistant() -> Any:
    torch.manual_seed(7)
    config = models.Config(vocab_size=97, d_model=16, num_heads=2, init_std=0.3, pattern=("mamba2",))
    small = LinrecForCausalLM.from_linrec(models.LanguageModel(config).eval())
    small.generation_config.pad_token_id = 0
    return small


def drafts(kind: str, face: Any, assistant: Any) -> dict[str, Any]:
    return {
        "lookup": {"prompt_lookup_num_tokens": 5},
        "long lookup": {"prompt_lookup_num_tokens": 24},
        "assistant": {"assistant_model": assistant},
        "itself": {"assistant_model": face},
        "a copy of itself": {"assistant_model": LinrecForCausalLM.from_linrec(face.model)},
    }[kind]


KINDS = ("lookup", "long lookup", "assistant", "itself", "a copy of itself")


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_that_of_the_plain_loop(
    hybrid: models.LanguageModel, face: Any, assistant: Any, text: Tensor, kind: str
) -> None:
    options = {"max_new_tokens": 30, "do_sample": False, **drafts(kind, face, assistant)}
    expected = greedy(hybrid, text, 30)
    assert torch.equal(face.generate(text, **options), expected)
    mask = torch.ones(1, 31, dtype=torch.long)
    mask[0, :3] = 0
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), text], 1)
    assert torch.equal(face.generate(padded, attention_mask=mask, **options)[:, 3:], expected)
    pieces = face.generate(text, prefill_chunk_size=5, **options)
    assert torch.equal(pieces, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_with_drafts_goes_on(
    hybrid: models.LanguageModel, face: Any, assistant: Any, text: Tensor, kind: str
) -> None:
    options = {"max_new_tokens": 10, "do_sample": False, **drafts(kind, face, assistant)}
    first = face.generate(text, return_dict_in_generate=True, **options)
    assert first.cache.state is not None
    whole = torch.cat([first.sequences, text[:, 3:7]], 1)
    expected = greedy(hybrid, whole, 10)
    for _ in range(2):
        assert torch.equal(face.generate(whole, cache=first.cache, **options), expected)
    plain = {"max_new_tokens": 10, "do_sample": False}
    assert torch.equal(face.generate(whole, cache=first.cache, **plain), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_new_ids_alone_with_drafts(
    hybrid: models.LanguageModel, face: Any, assistant: Any, text: Tensor, kind: str
) -> None:
    options = {"max_new_tokens": 15, "do_sample": False, **drafts(kind, face, assistant)}
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), text], 1)
    mask = torch.ones_like(padded)
    mask[0, :3] = 0
    state = face(padded[:, :20], attention_mask=mask[:, :20]).state
    got = face.generate(padded[:, 20:], state=state, attention_mask=mask, **options)
    assert torch.equal(got, greedy(hybrid, text, 15)[:, 17:])


def test_what_is_read_again_is_bounded(face: Any, text: Tensor) -> None:
    """A rejected draft costs at most the tokens between two states that are kept, never the prompt."""
    long = text.repeat(1, 8)
    lengths: list[int] = []
    face.model.embed.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    face.generate(long, max_new_tokens=60, do_sample=False, prompt_lookup_num_tokens=4)
    assert max(lengths[1:]) <= 2 * SPACING
    lengths.clear()
    face.generate(long, max_new_tokens=60, do_sample=False, prompt_lookup_num_tokens=40)
    assert max(lengths[1:]) <= 2 * SPACING + 41


def pair_probabilities(model: models.LanguageModel, ids: Tensor, top_k: int, temperature: float) -> Tensor:
    """``[V, V]``: the probability of the next two tokens, from full forward passes."""

    def following(ids: Tensor) -> Tensor:
        with torch.no_grad():
            logits = model(ids).logits[0, -1] / temperature
        return torch.full_like(logits, -torch.inf).scatter(0, *_top(logits, top_k)).softmax(-1)

    first = following(ids)
    pairs = torch.zeros(len(first), len(first))
    for token in first.nonzero().flatten():
        pairs[token] = first[token] * following(torch.cat([ids, token.view(1, 1)], 1))
    return pairs


def _top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    top = logits.topk(count)
    return top.indices, top.values


def test_rejected_drafts_change_no_probability(
    hybrid: models.LanguageModel, face: Any, assistant: Any, text: Tensor
) -> None:
    """Two tokens, of which the first is drafted by an assistant of other opinions, are drawn as the model says."""
    draws, prompt = 150, text[:, :9]
    expected = draws * pair_probabilities(hybrid, prompt, 3, 1.5).flatten()
    torch.manual_seed(8)
    options = {"max_new_tokens": 2, "do_sample": True, "top_k": 3, "temperature": 1.5}
    counts = torch.zeros_like(expected)
    for _ in range(draws):
        a, b = face.generate(prompt, assistant_model=assistant, **options)[0, -2:].tolist()
        counts[a * 97 + b] += 1
    possible = expected > 0
    assert counts[~possible].sum() == 0
    statistic = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    freedom = int(possible.sum()) - 1
    assert freedom == 8
    assert statistic < freedom + 3 * (2 * freedom) ** 0.5


def test_sampling_with_lookup_draws_from_the_model(face: Any, text: Tensor) -> None:
    """With one allowed token sampling is greedy, through the path of sampling."""
    options = {"max_new_tokens": 20, "do_sample": True, "top_k": 1}
    expected = greedy(face.model, text, 20)
    assert torch.equal(face.generate(text, prompt_lookup_num_tokens=4, **options), expected)
    assert torch.equal(face.generate(text, assistant_model=face, **options), expected)


def test_scores_and_hidden_states_of_drafts(face: Any, text: Tensor) -> None:
    asked = {"output_logits": True, "output_hidden_states": True, "return_dict_in_generate": True}
    options = {"max_new_tokens": 12, "do_sample": False, **asked}
    plain = face.generate(text, **options)
    drafted = face.generate(text, prompt_lookup_num_tokens=4, **options)
    torch.testing.assert_close(torch.stack(drafted.logits), torch.stack(plain.logits), atol=1e-4, rtol=1e-4)
    last = [torch.cat([step[-1][:, -1:] for step in out.hidden_states]) for out in (plain, drafted)]
    torch.testing.assert_close(*last, atol=1e-4, rtol=1e-4)


def test_drafts_end_at_the_end_token(hybrid: models.LanguageModel, face: Any, text: Tensor) -> None:
    expected = greedy(hybrid, text, 30)[0, 28:].tolist()
    end = expected[9]
    out = face.generate(
        text, max_new_tokens=30, do_sample=False, eos_token_id=end, prompt_lookup_num_tokens=6
    )
    assert out[0, 28:].tolist() == expected[: expected.index(end) + 1]
