"""The benchmark compares before it times, and says what it measured."""

import json
import subprocess
import sys

import pytest

from linrec.errors import BenchmarkError, UnknownNameError
from linrec.evals.bench import choices
from linrec.evals.bench.cases import CASES
from linrec.evals.bench.choices import _held
from linrec.evals.bench.forms import form_remarks, form_rows, form_table
from linrec.evals.bench.measure import interleaved
from linrec.evals.bench.properties import chunk_flops
from linrec.evals.bench.run import case_rows, remarks, run_bench, table, write

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")


@pytest.mark.slow
def test_every_case_in_small(tmp_path):
    names = [case.name for case in CASES] + ["step", "decode", "choices", "peak", "precision", "curves"]
    report = run_bench(names, quick=True, rounds=2)
    assert len(report["rows"]) == 2 * len(CASES) + 2 + 4
    assert all(row["seconds"] > 0 and row["ratio"] > 0 for row in report["rows"])
    assert table(report).row_count == len(report["rows"])
    assert len(remarks(report)) == 4
    report_file, *pictures = write(report, tmp_path)
    assert json.loads(report_file.read_text())["rows"] == report["rows"]
    assert [p.name for p in pictures] == ["time.png", "peak.png"] and all(p.stat().st_size for p in pictures)


def test_a_wrong_result_is_not_timed():
    case = CASES[0]
    wrong = case._replace(theirs=lambda *x: 1.01 * case.theirs(*x))
    with pytest.raises(BenchmarkError, match="differs from transformers"):
        case_rows(wrong, 70, 2)
    with pytest.raises(UnknownNameError, match="no case nothing"):
        run_bench(["nothing"])


def test_a_choice_that_is_slower_is_an_error():
    slow = {"case": "one row", "shape": "weight 1 x 1", "peer": "F.linear", "ratio": 0.94}
    with pytest.raises(
        BenchmarkError, match=r"one row \(weight 1 x 1\): the choice takes 1\.06 times as long"
    ):
        _held(lambda: slow)
    measured = iter([slow, {**slow, "ratio": 0.96}])
    assert _held(lambda: next(measured))["ratio"] == 0.96
    assert next(what for what, _ in choices.choice_table()) == "float32 products"


def test_flops_are_those_of_the_products():
    """At C = K = V every product of the chunk algorithm is C^3: 7 forward, 14 more backward."""
    forward, both = chunk_flops(128, 3, 64, 64)
    assert (forward, both) == (2 * 7 * 64**3 * 2 * 3, 2 * 21 * 64**3 * 2 * 3)


def test_measures():
    calls = []
    best = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 3 and best.keys() == {"a", "b"}
    # In a process of its own: what this one has freed would be used again, and nothing would grow.
    code = (
        "import torch; from linrec.evals.bench.measure import peak_memory; torch.ones(9); "
        "print(peak_memory(lambda: torch.ones(10_000_000)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 40e6 <= int(done.stdout) < 60e6


def test_forms_of_a_rule_side_by_side():
    rows = form_rows((5, 9), 2, ["gated_delta_net", "titans", "slstm"])  # slstm has one form only
    assert [(r["case"], r["length"]) for r in rows[::2]] == [
        ("gated_delta_net", 5),
        ("gated_delta_net", 9),
        ("titans", 5),
        ("titans", 9),
    ]
    assert all(r["seconds"] > 0 and r["peer_seconds"] > 0 and r["difference"] < 1e-5 for r in rows)
    assert form_table(rows).row_count == 2
    rows = [{**row, "ratio": 0.5 if row["case"] == "titans" else 2.0} for row in rows]
    assert (
        form_remarks(rows)[0] == "T=5, forward: chunkwise beats the loop in 1 of 2 rules; slower: titans 0.50"
    )
