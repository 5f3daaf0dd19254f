"""Tries and the walk over them: every distinct prefix is read once, whatever the layer, within a bound."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linrec.evals.harness.kept_states import KeptStates
from linrec.evals.harness.lm_eval_model import LinrecLM
from linrec.evals.harness.prefix_trie import Node, PrefixTrie
from linrec.evals.small import byte_config
from linrec.layers import LAYERS
from linrec.models.language_model import LanguageModel

# Contexts of different lengths behind a common start, continuations that share theirs, one question apart.
QUESTIONS = ["", "one", "one, two and three", "two", "three " * 9, "three " * 9 + "x"]
PAIRS = [(f"Few shots: {q}?", f" {a}") for q in QUESTIONS for a in ("a", "an answer", "an answe", "b" * 40)]
PAIRS += [("", "alone"), ("elsewhere", "x")]


def distinct_prefixes(sequences: list[list[int]]) -> int:
    return len({tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)})


def path(node: Node | None) -> list[int]:
    return [] if node is None else [*path(node.parent), *node.tokens]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2) | st.just(70_000), max_size=7), max_size=12))
def test_a_trie_holds_each_prefix_once(sequences: list[list[int]]) -> None:
    trie = PrefixTrie(sequences)
    assert trie.tokens == distinct_prefixes(sequences)
    for sequence, node in zip(sequences, trie.ends, strict=True):
        assert path(node) == sequence
    for node in trie.nodes:
        assert len(node) > 0
        firsts = [child.tokens[0] for child in node.children]
        assert len(set(firsts)) == len(firsts)
        assert all(child.parent is node and child.start == node.end for child in node.children)
        assert node.height == 1 + max((child.height for child in node.children), default=-1)


def make(pattern: tuple[str, ...], **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(byte_config(pattern, d_model=32, num_heads=2, **options))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p) * p.std(correction=0))
    return model.eval()


@torch.no_grad()
def plain(model: LanguageModel, context: str, continuation: str) -> float:
    start = list(context.encode()) or [256]
    tokens = torch.tensor([start + list(continuation.encode())])
    logp = model(tokens[:, :-1]).logits[0].double().log_softmax(-1)
    picked = logp.gather(-1, tokens[0, 1:, None])
    return float(picked[len(start) - 1 :].sum())


def scores(lm: LinrecLM) -> list[float]:
    requests = [SimpleNamespace(args=pair) for pair in PAIRS]
    return [total for total, _ in lm.loglikelihood(requests, disable_tqdm=True)]


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_every_layer_scores_as_in_full_passes(name: str) -> None:
    model = make((name,))
    found = scores(LinrecLM(model, batch_size=3, prefill_chunk=32))
    for (context, continuation), total in zip(PAIRS, found, strict=True):
        want = plain(model, context, continuation)
        assert math.isclose(total, want, rel_tol=1e-4, abs_tol=2e-3), (context, continuation)


def test_every_prefix_is_read_once() -> None:
    lm = LinrecLM(make(("gla", "softmax_attention"), num_layers=2))
    scores(lm)
    read = [[*(list(c.encode()) or [256]), *a.encode()][:-1] for c, a in PAIRS]
    assert lm.tokens_processed == distinct_prefixes(read) < sum(map(len, read)) / 2


@pytest.mark.parametrize("pattern", [("gated_delta_net",), ("gla", "softmax_attention")])
def test_states_stay_within_their_bound(pattern: tuple[str, ...]) -> None:
    model = make(pattern, num_layers=2)
    free = LinrecLM(model, batch_size=2)
    want = scores(free)
    for share in (2, 4, 20, math.inf):
        bound = int(free.peak_state_bytes / share)
        lm = LinrecLM(model, batch_size=2, max_state_bytes=bound)
        assert scores(lm) == pytest.approx(want, rel=1e-4, abs=2e-3)
        assert lm.peak_state_bytes <= bound
        assert lm.tokens_processed >= free.tokens_processed
    assert lm.tokens_processed > free.tokens_processed, "nothing kept: prefixes had to be read again"


def test_a_bound_for_one_chain_is_enough_where_the_walk_goes_depth_first() -> None:
    """Many contexts behind one prefix: breadth first needs a state for each, depth first only a few."""
    pairs = [(f"prefix {n:03d}", a) for n in range(60) for a in (" yes", " no")]
    requests: Any = [SimpleNamespace(args=pair) for pair in pairs]
    model = make(("gated_delta_net",))
    free = LinrecLM(model, batch_size=2)
    free.loglikelihood(requests, disable_tqdm=True)
    tight = LinrecLM(model, batch_size=2, max_state_bytes=free.peak_state_bytes // 5)
    tight.loglikelihood(requests, disable_tqdm=True)
    assert tight.tokens_processed == free.tokens_processed


def test_a_long_chain_of_prefixes_is_read_again_in_one_piece() -> None:
    """Nothing is kept, and each request goes on from the one before: n readings of up to n pieces of two tokens."""
    model, length = make(("gated_delta_net", "softmax_attention")), 700
    text = torch.randint(256, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    asked: Any = [(None, text[:n], [text[n]]) for n in range(2, length, 2)]
    lm = LinrecLM(model, batch_size=8, max_state_bytes=0)
    calls: list[int] = []
    handle = model.embed.register_forward_hook(lambda module, inputs, output: calls.append(1))
    found = lm._loglikelihood_tokens(asked, disable_tqdm=True)
    handle.remove()
    assert lm.peak_state_bytes == 0
    assert len(calls) < 4 * len(asked)
    with torch.no_grad():
        logp = model(torch.tensor([text])).logits[0].double().log_softmax(-1)
    for (_, context, [token]), (total, _) in zip(asked, found, strict=True):
        assert math.isclose(total, float(logp[len(context) - 1, token]), rel_tol=1e-4, abs_tol=2e-3)


def test_a_float64_model_is_scored_in_float64() -> None:
    model = make(("gated_delta_net", "softmax_attention"), num_layers=2).double()
    found = scores(LinrecLM(model, batch_size=3, prefill_chunk=32, max_state_bytes=20_000))
    assert found == pytest.approx([plain(model, *pair) for pair in PAIRS], rel=1e-10)


def test_inner_nodes_of_like_length_are_read_together_whatever_their_height() -> None:
    """One deep chain beside seven shallow ones: its head fills a batch with theirs."""
    texts = [f"{n}" * 40 for n in range(8)]
    pairs = [(t, a) for t in texts for a in ("xx", "yy")] + [(texts[0] + "x", "yy"), (texts[0] + "x", "zz")]
    model = make(("gla",))
    calls: list[int] = []
    model.embed.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    requests: Any = [SimpleNamespace(args=pair) for pair in pairs]
    LinrecLM(model, batch_size=8).loglikelihood(requests, disable_tqdm=True)
    assert calls[0] == 8


def test_the_least_recently_used_state_goes_first() -> None:
    kept = KeptStates(max_bytes=3 * 8)
    state = torch.zeros(1, 2)
    for key in "abc":
        kept.put(key, (state,))
    assert kept.get("a") is not None
    kept.put("d", (state,))
    assert [key for key in "abcd" if kept.get(key)] == ["a", "c", "d"]
    kept.put("big", (torch.zeros(100),))
    assert kept.get("big") is None and len(kept) == 3, "a state over the bound is not kept"
    assert kept.bytes == kept.peak_bytes == 3 * 8
    for key in ("a", "d", "d"):
        kept.drop(key)
    kept.put("c", (state,))
    assert kept.bytes == 8 and kept.has_room_for(2) and not kept.has_room_for(3)
