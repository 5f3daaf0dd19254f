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
from tests.evals.wrapped import TEXT, Reciter, greedy_text, instances, plain


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


def test_a_model_without_an_end_token_is_refused() -> None:
    from linrec.models.config import Config

    model = LanguageModel(Config(vocab_size=256, d_model=32, num_heads=2))
    with pytest.raises(CheckpointError, match="eos_token_id"):
        LinrecLM(model)
    with pytest.raises(ConfigError, match="rolling_window"):
        LinrecLM(LanguageModel(byte_config(("gla",), d_model=32, num_heads=2)), rolling_window=1)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"tokenizer": "gpt2"}, "tokenizer"),
        ({"max_length": 2048}, "max_length"),
        ({"add_bos_token": True}, "add_bos_token"),
        ({"parallelize": True}, "parallelize"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"prefil_chunk": 3}, "prefill_chunk"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "auto:4"}, "batch_size"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"max_gen_toks": 0}, "max_gen_toks"),
        ({"max_gen_toks": "12"}, "max_gen_toks"),
        ({"prefill_chunk": 0}, "prefill_chunk"),
        ({"max_state_bytes": -1}, "max_state_bytes"),
        ({"rolling_window": 1}, "rolling_window"),
        ({"dtype": "float"}, None),
        ({"dtype": "nn"}, "dtype"),
        ({"dtype": "int8"}, "dtype"),
    ],
    ids=str,
)
def test_arguments_mean_something_or_are_refused(arguments: dict[str, Any], name: str | None) -> None:
    reciter: Any = Reciter(b"abc")
    if name is None:
        LinrecLM(reciter, **arguments)
    else:
        with pytest.raises((ConfigError, CheckpointError), match=name):
            LinrecLM(reciter, **arguments)


def test_batch_sizes_and_dtypes_of_a_command_line() -> None:
    reciter: Any = Reciter(b"abc")
    assert LinrecLM(reciter, dtype="auto", batch_size="16").batch_size == 16
    assert LinrecLM(reciter, batch_size="auto", max_batch_size=3).batch_size == 3
    assert LinrecLM(reciter, max_batch_size=64).batch_size == 8


def test_the_gpu_that_the_command_line_names_by_itself_is_the_cpu_where_there_is_none() -> None:
    reciter: Any = Reciter(b"abc")
    if not torch.cuda.is_available():
        assert LinrecLM(reciter, device="cuda:0")._device == torch.device("cpu")


def test_a_model_in_memory_is_converted(tmp_path: Any) -> None:
    model = LanguageModel(byte_config(("gla",), d_model=32, num_heads=2))
    model.save(tmp_path / "m")
    assert next(LinrecLM(tmp_path / "m", dtype="bfloat16").model.parameters()).dtype == torch.bfloat16
    assert next(LinrecLM(tmp_path / "m", dtype="auto").model.parameters()).dtype == torch.float32


def test_text_of_other_wrappers_is_honoured_or_refused() -> None:
    lm = LinrecLM(Reciter(b"abc"))  # type: ignore[arg-type]
    assert lm.tok_encode("héllo", left_truncate_len=3) == list(b"llo")
    assert lm.tok_encode("a", add_special_tokens=False) == [97]
    for arguments in ({"add_special_tokens": True}, {"truncation": True}):
        with pytest.raises(ConfigError, match=next(iter(arguments))):
            lm.tok_encode("a", **arguments)
    with pytest.raises(ConfigError, match="override_bs"):
        lm._loglikelihood_tokens([], override_bs=3)
    with pytest.raises(ConfigError, match="chat template"):
        lm.apply_chat_template([{"role": "user", "content": "x"}])
    with pytest.raises(ConfigError, match="chat template"):
        lm.chat_template(True)
    with pytest.raises(ConfigError, match="pictures"):
        lm.generate_until(instances(("x", {"until": []}, {"visual": []})), disable_tqdm=True)
