"""Stock lm-eval tasks by name: those that need no network run, the others say what is missing."""

from __future__ import annotations

import logging
import re
import socket
import time
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import torch
from typer.testing import CliRunner

from linrec.cli import app
from linrec.evals.harness.ruler import tokenizer_folder, with_tokenizer, word_tokenizer
from linrec.evals.harness.run import evaluate
from linrec.evals.harness.task_loading import load_tasks
from linrec.evals.small import byte_config
from linrec.models.language_model import LanguageModel

STOCK = Path(lm_eval.tasks.__file__).parent
NEEDLES = ["niah_single_1", "niah_multikey_2"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is resolved; and two folders of stock tasks are indexed instead of all, which takes long."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror("there is no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    whole = lm_eval.tasks.TaskManager

    def narrow(include_path: str, include_defaults: bool, metadata: dict[str, Any]) -> Any:
        assert include_defaults, "stock tasks were asked for"
        folders = [include_path, str(STOCK / "ruler"), str(STOCK / "piqa")]
        return whole(include_path=folders, include_defaults=False, metadata=metadata)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", narrow)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(byte_config(("gated_delta_net",), d_model=32, num_heads=2)).eval()


def test_needles_run_offline(model: LanguageModel) -> None:
    pytest.importorskip("wonderwords")
    report = evaluate(model, NEEDLES, limit=2, metadata={"max_seq_lengths": [512]}, progress=False)
    for name in NEEDLES:
        scores = report["tasks"][name]
        assert 0.0 <= scores["512"] <= 1.0 and scores["samples"] == 2
        assert "4096" not in scores, "a length that was not asked for has no score"


def test_needle_prompts_are_as_long_as_asked_in_the_unit_asked_for() -> None:
    pytest.importorskip("wonderwords")
    sizes = {}
    for unit in ("words", "bytes"):
        _, [task] = load_tasks(["niah_single_1"], {"max_seq_lengths": [1024], "tokenizer": unit})
        rows = task.test_docs()
        count = (
            len(word_tokenizer()(rows[0]["input"]).input_ids) if unit == "words" else len(rows[0]["input"])
        )
        assert 600 < count <= 1024 - 128, "128 tokens are left for the answer"
        assert rows[0]["outputs"][0] in rows[0]["input"]
        sizes[unit] = len(rows[0]["input"])
    assert sizes["words"] > 3 * sizes["bytes"]


def test_the_tokenizer_of_the_metadata_is_kept() -> None:
    assert with_tokenizer({"tokenizer": "some/other", "x": 1}) == {"tokenizer": "some/other", "x": 1}
    assert with_tokenizer({"tokenizer": "bytes"})["tokenizer"] == tokenizer_folder("bytes")
    words = with_tokenizer({})["tokenizer"]
    from transformers import AutoTokenizer

    assert (
        len(AutoTokenizer.from_pretrained(words)("The key is 123, or 45.").input_ids) == 3 + 3 + 1 + 1 + 2 + 1
    )


@pytest.mark.parametrize("task", ["piqa", "niah_single_2"])
def test_a_data_set_that_cannot_be_had_is_one_line_and_exit_code_one(
    task: str, model: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.save(tmp_path / "model")
    out = tmp_path / "report.json"
    with caplog.at_level(logging.CRITICAL):
        done = CliRunner().invoke(app, ["eval", str(tmp_path / "model"), "--tasks", task, "--out", str(out)])
    assert done.exit_code == 1
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("linrec: error: ")]
    assert re.search(rf"the data of task '{task}' cannot be had here: .*need a network", line)
    assert not out.exists()


def test_a_misspelt_stock_task_gets_the_nearest_names(model: LanguageModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "model"), "--tasks", "niah_singel_1"])
    assert done.exit_code == 1
    assert "did you mean niah_single_1" in done.stderr
