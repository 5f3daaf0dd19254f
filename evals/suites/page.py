"""The page of a suite, made from its records alone: picture, ranges over seeds, every run, commands and versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linrec.evals.pages.report import Report
from linrec.evals.suites.picture import best_rate
from linrec.evals.suites.suite import Suite

Record = dict[str, Any]


def page(suite: Suite, records: list[Record], picture: Path) -> Report:
    """One HTML file with everything."""
    made = Report(suite.title, f"linrec suite {suite.name}, size {suite.size}")
    made.picture(
        picture, "Means over seeds; bands, whiskers or dots reach from the lowest seed to the highest"
    )
    for problem in dict.fromkeys(r["problem"]["name"] for r in records):
        shown = [r for r in best_rate(records) if r["problem"]["name"] == problem]
        made.heading(problem)
        made.table(*ranges(shown), "Accuracy, lowest to highest of the seeds; state: floats of one row")
    made.heading("Runs")
    made.table(
        ("problem", "mixer", "width", "seed", "rate", "steps", "solved", "train accuracy", "loss", "seconds"),
        [
            (r["problem"]["name"], r["candidate"]["label"], r["candidate"]["width"], r["seed"], r["settings"]["lr"],
             r["steps"], r["solved"], r["train_accuracy"], r["loss"], r["seconds"])
            for r in records
        ],
    )  # fmt: skip
    for line in dict.fromkeys(r["command"] for r in records):
        made.command(line)
    return made.versions(records[-1]["versions"])


def ranges(records: list[Record]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Headers and rows: a row a candidate, a column a test, best mean over all tests first."""
    tests = list(records[0]["scores"])
    runs: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        runs.setdefault((record["candidate"]["label"], record["candidate"]["width"]), []).append(record)

    def total(found: list[Record]) -> float:
        return sum(sum(r["scores"].values()) for r in found) / len(found)

    rows: list[tuple[Any, ...]] = []
    for (label, width), found in sorted(runs.items(), key=lambda item: -total(item[1])):
        scores = [spread([r["scores"][test] for r in found]) for test in tests]
        rows.append((label, width, *scores, max(found[0]["state_floats"].values()), len(found)))
    rows.append(("guessing", None, *(f"{records[0]['chance'][test]:.2f}" for test in tests), None, None))
    return ("mixer", "width", *tests, "state", "seeds"), rows


def spread(values: list[float]) -> str:
    """``0.43 to 0.98``, or one number where that is all."""
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"
