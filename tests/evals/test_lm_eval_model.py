"""The lm-eval model against independent scoring: one full forward pass a request, no state, no batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from linrec.errors import CheckpointError, ConfigError
from linrec.evals.harness.lm_eval_model import LinrecLM
from linrec.evals.small import byte_config
from linrec.models.language_model import LanguageModel
from tests.evals.reciter import Reciter, instances

PATTERNS = {
    "recurrent": ("gated_delta_net",),
    "hybrid": ("gated_delta_net", "softmax_attention"),
    "mixed": ("mamba2", "gla"),
}
TEXT = "def f(x):\n    return x + 1  # é, 中文\n"


@pytest.fixture(scope="module", params=PATTERNS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(byte_config(PATTERNS[request.param], d_model=32, num_heads=2, num_layers=2))
    with torch.no_grad():  # far from uniform, so that a wrong context cannot score the same
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p) * p.std(correction=0))
    return model.eval()


@torch.no_grad()
def plain(model: LanguageModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    tokens = torch.tensor([context + continuation])
    logits = model(tokens).logits[0].double()
    total, greedy = 0.0, True
    for j, token in enumerate(continuation):
        row = logits[len(context) + j - 1]
        total += float(row[token] - torch.logsumexp(row, 0))
        greedy &= int(row.argmax()) == token
    return total, greedy


def greedy_text(model: LanguageModel, context: list[int], count: int) -> list[int]:
    tokens = list(context)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(context) :]


def test_continuations_equal_full_passes(model: LanguageModel) -> None:
    pairs = [(TEXT * k, c) for k in (1, 2, 4) for c in ("a", " and more of it", "\n\tx", "é")]
    pairs += [("", "alone"), ("", "é"), ("   ", "spaces"), ("short", "x" * 70), (TEXT, "a")]
    scores = LinrecLM(model, batch_size=2).loglikelihood(instances(*pairs), disable_tqdm=True)
    for (context, continuation), (total, greedy) in zip(pairs, scores, strict=True):
        kept = context.rstrip()  # lm-eval moves trailing spaces into the continuation
        scored = (context + continuation)[len(kept) :]
        want, want_greedy = plain(model, list(kept.encode()) or [256], list(scored.encode()))
        assert math.isclose(total, want, rel_tol=1e-4, abs_tol=1e-3)
        assert greedy == want_greedy


def test_greedy_flag_is_true_for_the_greedy_continuation(model: LanguageModel) -> None:
    lm = LinrecLM(model)
    context = list(TEXT.encode())
    chosen = greedy_text(model, context, 5)
    other = [*chosen[:4], (chosen[4] + 1) % 256]
    keys = ("c", "x")
    scores = lm._loglikelihood_tokens([(keys, context, chosen), (keys, context, other)], disable_tqdm=True)
    assert [greedy for _, greedy in scores] == [True, False]


def test_a_context_is_encoded_once(model: LanguageModel) -> None:
    lm = LinrecLM(model)
    context, choices = TEXT * 8, ["ab", "cd", "ef", "gh"]
    lm.loglikelihood(instances(*[(context, c) for c in choices]), disable_tqdm=True)
    encoded = len(context.encode())
    assert encoded <= lm.tokens_processed < encoded + 20


def test_rolling_carries_the_state_through_the_document(model: LanguageModel) -> None:
    texts = [TEXT * 7, "x", TEXT, "", "y" * 33]
    scores = LinrecLM(model, batch_size=3, prefill_chunk=32).loglikelihood_rolling(
        instances(*[(t,) for t in texts]), disable_tqdm=True
    )
    for text, total in zip(texts, scores, strict=True):
        want, _ = plain(model, [256], list(text.encode()))
        assert math.isclose(total, want, rel_tol=1e-4, abs_tol=1e-3)


@pytest.mark.parametrize("size", [0, 1, 16, 17, 40])
def test_rolling_windows_overlap_by_half(model: LanguageModel, size: int) -> None:
    window, data = 16, list(range(40, 40 + size))
    lm = LinrecLM(model, rolling_window=window)
    (total,) = lm.loglikelihood_rolling(instances((bytes(data).decode(),)), disable_tqdm=True)
    inputs, want = [256, *data], 0.0
    for j, token in enumerate(data):
        # the window that first reaches target j starts at a multiple of 8
        first = 0 if j < window else 8 * math.ceil((j + 1 - window) / 8)
        want += plain(model, inputs[first : j + 1], [token])[0]
    assert math.isclose(total, want, rel_tol=1e-4, abs_tol=1e-3)


def test_generation_is_greedy_and_stops(model: LanguageModel) -> None:
    prompts = [TEXT, "a", TEXT * 2, "a"]
    raw = [bytes(greedy_text(model, list(p.encode()), 12)) for p in prompts]
    texts = [r.decode("utf-8", "replace") for r in raw]
    lm = LinrecLM(model, batch_size=3)
    options = {"until": [], "max_gen_toks": 12}
    assert lm.generate_until(instances(*[(p, options) for p in prompts]), disable_tqdm=True) == texts
    stop = bytes(raw[0][5:7])
    if all(byte < 128 for byte in stop):
        cut = {"until": [stop.decode(), "never"], "max_gen_toks": 12}
        (text,) = lm.generate_until(instances((TEXT, cut)), disable_tqdm=True)
        assert text == raw[0].split(stop)[0].decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("until", "limit", "text", "steps"),
    [
        ([], 50, "one\n\ntwo é!", 12),  # to the end token
        (["\n\n"], 50, "one", 4),
        (["é", "two"], 50, "one\n\n", 7),  # a stop string ends the stream as soon as it is complete
        ("e\n", 50, "on", 3),
        ([], 3, "one", 2),
        ([], 0, "", 0),
    ],
)
def test_stop_strings(until: Any, limit: int, text: str, steps: int) -> None:
    reciter = Reciter("one\n\ntwo é!".encode())
    lm = LinrecLM(reciter)
    options = {"until": until, "max_gen_toks": limit}
    assert lm.generate_until(instances(("x", options), ("yy", options)), disable_tqdm=True) == [text] * 2
    assert reciter.steps == steps


def test_sampling_is_seeded_and_independent_of_the_batch(model: LanguageModel) -> None:
    options = {"until": ["\n\n\n"], "max_gen_toks": 10, "do_sample": True, "temperature": 0.9, "top_p": 0.95}
    requests = instances(*[(p, options) for p in ("one", "three", "one")])
    together = LinrecLM(model, batch_size=8, seed=3).generate_until(requests, disable_tqdm=True)
    apart = LinrecLM(model, batch_size=1, seed=3).generate_until(requests, disable_tqdm=True)
    assert together == apart
    assert together[0] != together[2]


def test_a_model_without_an_end_token_is_refused() -> None:
    from linrec.models.config import Config

    model = LanguageModel(Config(vocab_size=256, d_model=32, num_heads=2))
    with pytest.raises(CheckpointError, match="eos_token_id"):
        LinrecLM(model)
    with pytest.raises(ConfigError, match="rolling_window"):
        LinrecLM(LanguageModel(byte_config(("gla",), d_model=32, num_heads=2)), rolling_window=1)


def generate(model: LanguageModel, *requests: tuple[str, dict[str, Any]], **arguments: Any) -> list[str]:
    return LinrecLM(model, **arguments).generate_until(instances(*requests), disable_tqdm=True)


@pytest.mark.parametrize("until", [None, []])
def test_no_stop_strings(until: Any) -> None:
    """A task's ``until: null`` is no stop string, as [] is; the end token ends a text in any case."""
    reciter = Reciter("one\n\ntwo é!".encode())
    assert generate(reciter, ("x", {"until": until})) == ["one\n\ntwo é!"]  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [1, 4, 9])
def test_max_length_counts_the_prompt(model: LanguageModel, limit: int) -> None:
    """As in transformers it stands above max_gen_toks, and it leaves each prompt of a batch its own room."""
    prompts = ["é", "longer", TEXT]
    total = max(len(p.encode()) for p in prompts) + limit
    options = {"until": None, "max_length": total, "max_gen_toks": 1}
    texts = generate(model, *((p, options) for p in prompts), batch_size=8)
    for prompt, text in zip(prompts, texts, strict=True):
        data = list(prompt.encode())
        want = bytes(greedy_text(model, data, total - len(data)))
        assert text == want.decode("utf-8", "replace")


def test_max_length_without_room_is_refused_before_any_work(model: LanguageModel) -> None:
    lm = LinrecLM(model)
    options = {"until": [], "max_length": 5}
    with pytest.raises(ConfigError, match="max_length"):
        lm.generate_until(instances(("a", options), ("abcde", options)), disable_tqdm=True)
    assert lm.tokens_processed == 0


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_limits_under_every_name(name: str) -> None:
    reciter = Reciter(b"abcdefgh")
    assert generate(reciter, ("x", {"until": [], name: 3})) == ["abc"]  # type: ignore[arg-type]
    both = {"until": [], "max_tokens": 6, "max_completion_tokens": 7, name: 3}
    want = 6 if name == "max_completion_tokens" else 3  # the first of lm-eval's order counts
    assert generate(reciter, ("x", both)) == ["abcdefgh"[:want]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4},
        {"num_beams": True},
        {"num_return_sequences": 2},
        {"repetition_penalty": 1.2},
        {"length_penalty": 0.5},
        {"min_length": 10},
        {"min_new_tokens": 1},
        {"no_repeat_ngram_size": 3},
        {"use_cache": False},
        {"max_gen_tokens": 5},
        {"unitl": ["\n"]},
        {"stop": ["\n"]},
        {"seed": 1},
        {"until": 3},
        {"until": [None]},
        {"until": ""},
        {"until": ["\n", ""]},
        {"max_gen_toks": -1},
        {"max_gen_toks": "many"},
        {"max_new_tokens": 2.5},
        {"max_length": 0},
        {"do_sample": "yes"},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"do_sample": True, "temperature": 1.0, "top_k": -1},
        {"do_sample": True, "temperature": 1.0, "top_p": 0.0},
        {"do_sample": True, "temperature": 1.0, "top_p": 1.5},
    ],
    ids=str,
)
def test_options_that_are_not_honoured_are_refused_by_name(options: dict[str, Any]) -> None:
    reciter = Reciter(b"abc")
    name = [*options][-1] if "top_k" in options or "top_p" in options else next(iter(options))
    given = {"until": [], **options}
    with pytest.raises(ConfigError, match=name):
        generate(reciter, ("x", {"until": []}), ("x", given))  # type: ignore[arg-type]
    assert reciter.steps == 0


def test_options_without_effect_are_accepted() -> None:
    options = {"until": [], "num_beams": 1, "repetition_penalty": 1.0, "min_length": 0, "length_penalty": 1.0,
               "do_sample": False, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "use_cache": True,
               "max_gen_toks": None, "max_length": None, "early_stopping": None}  # fmt: skip
    assert generate(Reciter(b"abc"), ("x", options)) == ["abc"]  # type: ignore[arg-type]


@torch.no_grad()
def test_sampling_follows_temperature_top_k_and_top_p(model: LanguageModel) -> None:
    """First bytes of many streams: all of the nucleus, and nothing outside it."""
    logits = model(torch.tensor([list(b"one")])).logits[0, -1].double()
    count = 300

    def drawn(**options: Any) -> set[str]:
        settings = {"until": [], "max_gen_toks": 1, "temperature": 3.0, **options}
        return set(generate(model, *[("one", settings)] * count, batch_size=64))

    order = [
        bytes([i]).decode("utf-8", "replace") if i < 256 else "" for i in logits.argsort(descending=True)
    ]
    assert drawn(top_k=3) == set(order[:3])
    chances = (logits / 3.0).softmax(-1).sort(descending=True).values
    kept = int((chances.cumsum(-1) - chances < 0.05).sum())
    assert drawn(top_p=0.05) <= set(order[:kept])
    assert len(drawn(top_k=0)) > 20  # 0 is no bound, and a temperature alone samples
