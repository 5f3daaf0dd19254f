"""The measured tables of the pages are those of the records in evals/results."""

from __future__ import annotations

import json
import re
from statistics import mean
from typing import Any

import pytest

from tests.pages import ROOT, read

RESULTS = ROOT / "evals/results"
Table = list[list[str]]


def tables(text: str) -> list[Table]:
    """The cells of every table, header first."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.M)
    return [
        [
            [cell.strip() for cell in line.strip("|\n").split("|")]
            for line in table.splitlines()
            if "---" not in line
        ]
        for table in found
    ]


def records(name: str, seeds: int = 99) -> list[dict[str, Any]]:
    """The lines on file, of the first seeds."""
    lines = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row.get("seed", 0) < seeds]


def numbers(cell: str) -> list[str]:
    return re.findall(r"\d+\.\d+", cell)


def measured(values: list[float]) -> list[list[str]]:
    """How a cell may give them: the lowest and the highest, one number where that is all, or every one."""
    every = [f"{value:.2f}" for value in sorted(values)]
    return [list(dict.fromkeys((every[0], every[-1]))), every]


def sections() -> list[tuple[str, int, Table]]:
    """(suite, seeds that its command reads, table) of the findings."""
    found = []
    for section in read(ROOT / "docs/findings.md").split("\n## ")[1:]:
        suite = re.search(r"`linrec suite (\w+)(?: --seeds (\d+))?", section)
        found += [(suite[1], int(suite[2] or 3), table) for table in tables(section) if suite]
    return found


def column_scores(column: str, runs: list[dict[str, Any]]) -> list[float]:
    """Scores of the test that a column names; where there is one test alone, a number is a width."""
    tests, number = list(runs[0]["scores"]), re.search(r"\d+", column)
    if len(tests) == 1:
        return [
            r["scores"][tests[0]] for r in runs if not number or r["candidate"]["width"] == int(number[0])
        ]
    assert number is not None, column
    return [run["scores"][number[0]] for run in runs]


@pytest.mark.parametrize(
    ("suite", "seeds", "table"), sections(), ids=lambda x: x if isinstance(x, str) else ""
)
def test_findings(suite: str, seeds: int, table: Table) -> None:
    rows, head = records(suite, seeds), table[0]
    checked = 0
    for label, *cells in table[1:]:
        mine = [row for row in rows if row["candidate"]["label"] == label]
        assert mine, f"{suite} has no runs of {label!r}"
        for column, cell in zip(head[1:], cells, strict=True):
            if not numbers(cell):
                continue
            assert numbers(cell) in measured(column_scores(column, mine)), (label, column, cell)
            checked += 1
    assert checked >= len(table) - 1


def test_comparison() -> None:
    (table,) = tables(read(ROOT / "docs/compare.md"))
    runs = [row for row in records("compare") if row["kind"] == "run"]
    assert {row[0] for row in table[1:]} == {run["mixer"] for run in runs}
    for mixer, windows, carried in table[1:]:
        mine = [run["bits_per_byte"] for run in runs if run["mixer"] == mixer]
        scores = [bits["windows"] for bits in mine]
        assert numbers(windows) == [f"{x:.2f}" for x in (mean(scores), min(scores), max(scores))]
        assert numbers(carried) == [f"{mean(bits['carried'] for bits in mine):.2f}"]


def test_counts_in_the_readme() -> None:
    from linrec.evals.compare.setting import MIXERS
    from linrec.evals.kernels.targets import CHECKED
    from linrec.evals.pages.cache_table import VARIANTS
    from linrec.evals.suites.runner import SUITES

    readme = read(ROOT / "README.md")
    assert len(VARIANTS) == 19 and "nineteen attention variants" in readme
    assert len(MIXERS) == 12 and "# twelve" in read(ROOT / "docs/compare.md")
    assert len(CHECKED) == 4 and "for four GPU architectures" in readme
    line = next(line for line in readme.splitlines() if "linrec suite parity" in line)
    assert set(SUITES) <= set(re.findall(r"\w+", line))
