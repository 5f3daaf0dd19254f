"""The kit's tasks: what is in them, what they score, and that no network is touched."""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from linrec.errors import ConfigError, DatasetError, UnknownNameError
from linrec.evals.harness import run, scores, task_loading
from linrec.evals.harness.tasks import stdlib
from linrec.evals.small import byte_config
from linrec.models.corpus import standard_library
from linrec.models.language_model import LanguageModel

OURS = ["linrec_stdlib_bpb", "linrec_stdlib_choice"]
SMALL = {"questions": 24, "max_document_bytes": 2000, "max_documents": 6}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a task of the kit tried the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class Oracle(LM):
    """Another lm-eval model: it prefers text that occurs after its context in the library."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = {m.path: m.text for m in stdlib.held_out_modules()}

    def loglikelihood(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        known = ["".join(r.args) in self.texts[r.doc["path"]] for r in requests]
        return [(-1.0 if k else -500.0, k) for k in known]

    def loglikelihood_rolling(self, requests: list[Any], **kwargs: Any) -> list[float]:
        return [-math.log(2) * 3 * len(r.args[0].encode()) for r in requests]

    def generate_until(self, requests: list[Any], **kwargs: Any) -> list[str]:
        raise NotImplementedError


def test_any_lm_eval_model_can_run_them() -> None:
    from lm_eval import simple_evaluate

    manager = TaskManager(include_path=str(task_loading.TASK_FOLDER), include_defaults=False, metadata=SMALL)
    results = simple_evaluate(model=Oracle(), tasks=OURS, task_manager=manager, bootstrap_iters=0)
    assert results is not None
    found = scores.scores_by_task(results)
    assert found["linrec_stdlib_bpb"]["bits_per_byte"] == pytest.approx(3.0)
    assert found["linrec_stdlib_choice"]["acc"] == 1.0
    assert found["linrec_stdlib_choice"]["samples"] == 24


def test_documents_are_whole_held_out_modules_in_raw_bytes() -> None:
    held_out = {str(d.path): d.text for d in standard_library().held_out}
    trained = {str(d.path) for d in standard_library().train}
    documents = stdlib.build_documents(max_document_bytes=4000)["test"]
    assert len(documents) > 10
    for row in documents:
        assert row["text"].encode("utf-8") == held_out[row["path"]]
        assert row["bytes"] == len(held_out[row["path"]]) <= 4000
        assert row["path"] not in trained


def test_questions_are_seeded_and_sound() -> None:
    texts = {m.path: m.text for m in stdlib.held_out_modules()}
    rows = stdlib.build_questions(questions=120)["test"]
    assert rows.to_list() == stdlib.build_questions(questions=120)["test"].to_list()
    assert rows.to_list() != stdlib.build_questions(questions=120, seed=1)["test"].to_list()
    for row in rows:
        assert 100 <= len(row["context"].encode()) <= 400
        assert row["context"] + "\n" + row["choices"][row["answer"]] in texts[row["path"]]
        assert len(set(row["choices"])) == 4
        assert len({len(c) - len(c.lstrip()) for c in row["choices"]}) == 1
    counts = torch.bincount(torch.tensor(rows["answer"]), minlength=4)
    assert counts.min() > 15, "the right answer's place should be uniform"


def test_report_of_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel(byte_config(("gated_delta_net",), d_model=32, num_heads=2)).eval()
    model.save(tmp_path / "model")
    out = tmp_path / "deep" / "report.json"
    report = run.evaluate(tmp_path / "model", OURS, limit=4, metadata=SMALL, out=out, progress=False)
    assert json.loads(out.read_text()) == report
    names = sorted(p.name for p in out.parent.iterdir())
    assert names == ["report.html", "report.json"], "no temporary file is left"
    page = out.with_suffix(".html").read_text()
    assert "linrec_stdlib_bpb" in page and "data:image/png;base64," in page
    documents = stdlib.build_documents(**SMALL)["test"].select(range(4))
    nats = 0.0
    with torch.no_grad():
        for row in documents:
            data = list(row["text"].encode())
            logp = model(torch.tensor([[256, *data[:-1]]])).logits[0].log_softmax(-1)
            nats -= float(logp[torch.arange(len(data)), torch.tensor(data)].sum())
    want = nats / math.log(2) / sum(documents["bytes"])
    assert report["tasks"]["linrec_stdlib_bpb"]["bits_per_byte"] == pytest.approx(want, rel=1e-5)
    assert 0.0 <= report["tasks"]["linrec_stdlib_choice"]["acc"] <= 1.0
    assert scores.results_table(report).row_count == 3


@pytest.mark.parametrize("names", [["linrec_nothing"], [""], ["linrec_stdlib_bpb", "linrec_x"]])
def test_unknown_tasks_are_refused_before_anything_loads(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="linrec_stdlib_bpb"):
        run.evaluate(tmp_path / "absent", names)


def test_metadata_that_no_task_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match="question"):
        task_loading.load_tasks(OURS, {"question": 24})
    task_loading.load_tasks(OURS[:1], SMALL)  # what another of the kit's tasks reads is no error


@pytest.mark.parametrize(
    ("task", "settings", "num_fewshot", "says"),
    [
        (
            "linrec_copy",
            {"generation_kwargs": {"until": ["\n"], "num_beams": 4}},
            None,
            "linrec_copy.*num_beams",
        ),
        ("linrec_mqar", {"num_fewshot": 0}, 2, "num_fewshot.*linrec_mqar"),
        ("linrec_mqar", {"num_fewshot": 0}, 0, None),
        ("linrec_mqar", {}, 2, None),
        ("linrec_copy", {}, None, None),
    ],
)
def test_what_would_be_ignored_is_refused_before_any_request(
    task: str, settings: dict[str, Any], num_fewshot: int | None, says: str | None
) -> None:
    _, loaded = task_loading.load_tasks([task], {"documents": 2})
    for key, value in settings.items():
        loaded[0].set_config(key=key, value=value)
    if says is None:
        task_loading.check_tasks(loaded, num_fewshot)
    else:
        with pytest.raises(ConfigError, match=says):
            task_loading.check_tasks(loaded, num_fewshot)


def test_a_data_set_that_cannot_be_fetched_is_explained() -> None:
    try:
        try:
            raise OSError("name resolution failed")
        except OSError as error:
            raise RuntimeError("Couldn't reach 'x' on the Hub") from error
    except RuntimeError as error:
        explained = task_loading.explained("piqa", error)
    assert isinstance(explained, DatasetError)
    assert "piqa" in str(explained) and "linrec_stdlib_bpb" in str(explained)
    bug = ZeroDivisionError("a bug")
    assert task_loading.explained("piqa", bug) is bug
