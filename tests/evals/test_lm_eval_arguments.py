"""Arguments of the lm-eval model: each means something, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from linrec.errors import CheckpointError, ConfigError
from linrec.evals.harness.lm_eval_model import LinrecLM
from linrec.evals.small import byte_config
from linrec.models.language_model import LanguageModel
from tests.evals.reciter import Reciter, instances


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
    lm = LinrecLM(Reciter(b"abc"))
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
