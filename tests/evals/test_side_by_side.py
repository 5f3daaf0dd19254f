"""Both wrappers answer alike on all three request kinds, and what they took is counted where it happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("accelerate")

from linrec.cli import app
from linrec.evals.harness.side_by_side import COLUMNS, side_by_side, side_by_side_rows
from linrec.evals.harness.tasks.stdlib import build_questions
from linrec.evals.small import byte_config
from linrec.models.language_model import LanguageModel

SMALL = {"questions": 8, "max_document_bytes": 600, "max_documents": 3, "documents": 3, "copy_lengths": [8]}


def test_both_answer_alike_and_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # lm-eval asks pip and the system about themselves at every run, a second each time
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    torch.manual_seed(0)
    model = LanguageModel(byte_config(("gla", "softmax_attention"), d_model=32, num_heads=2, num_layers=2))
    model.eval()
    report = side_by_side(
        model,
        ["linrec_stdlib_choice,linrec_stdlib_bpb,linrec_copy"],
        shots=(0,),
        limit=3,
        batch_size=2,
        turns=2,
        metadata=SMALL,
        out=tmp_path / "report.json",
        progress=False,
    )
    choice, documents, copy = report["runs"]
    for run in (choice, documents):
        assert run["largest_difference"] < 1e-2
        assert run["hf"]["scores"].keys() == run["linrec"]["scores"].keys()
    assert copy["equal_texts"] == 1.0 and copy["largest_difference"] is None
    assert choice["requests"] == 12
    rows = build_questions(questions=8)["test"].select(range(3))
    contexts = sum(len(row["context"].encode()) for row in rows)
    assert contexts < choice["linrec"]["tokens"] < 2 * contexts
    assert choice["hf"]["tokens"] > 4 * contexts
    assert choice["fewer_tokens"] == choice["hf"]["tokens"] / choice["linrec"]["tokens"]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page and "linrec_stdlib_choice" in page
    assert all(len(row) == len(COLUMNS) for row in side_by_side_rows(report))


def test_the_command_prints_every_figure_and_writes_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    torch.manual_seed(0)
    LanguageModel(byte_config(("gla",), d_model=32, num_heads=2)).save(tmp_path / "model")
    options = ["--tasks", "linrec_mqar", "--metadata", '{"documents": 1, "queries": 2}', "--shots", "0"]
    out = tmp_path / "beside"
    done = CliRunner().invoke(app, ["compare-hf", str(tmp_path / "model"), *options, "--out", str(out)])
    assert done.exit_code == 0, done.output
    figures = dict(line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
    assert figures["task"] == "linrec_mqar" and figures["requests"] == "2"
    (run,) = json.loads(out.with_suffix(".json").read_text())["runs"]
    assert figures["tokens, linrec"] == str(run["linrec"]["tokens"])
    assert figures["fewer"] == f"{run['fewer_tokens']:.1f}x" and out.with_suffix(".html").exists()
