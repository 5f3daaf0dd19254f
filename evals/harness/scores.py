"""What lm-eval found, in plain keys, and as rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

SCORE_COLUMNS = ("task", "metric", "value", "±", "documents")


def scores_by_task(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """lm-eval's result tables with plain keys: ``acc``, ``acc_stderr``; a filter other than none is kept."""
    tables = {**results["results"], **results.get("groups", {})}
    scores: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        row: dict[str, Any] = {}
        for key, value in table.items():
            metric, _, filtered = key.partition(",")
            absent = metric.isdigit() and value == -1  # RULER's mark for a length that was not asked for
            if isinstance(value, int | float) and not isinstance(value, bool) and _ and metric and not absent:
                row[metric if filtered == "none" else key] = float(value)
        count = results.get("n-samples", {}).get(name)
        row["samples"] = count["effective"] if count else None
        scores[name] = row
    return scores


def results_table(report: dict[str, Any]) -> Table:
    """The report as a rich table."""
    from rich.table import Table

    table = Table(title=f"{report['checkpoint']}  ({report['seconds']:.1f} s)")
    for column in SCORE_COLUMNS:
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for task, metric, value, error, count in score_rows(report):
        spread = "" if error is None else f"{error:.4f}"
        table.add_row(task, metric, f"{value:.4f}", spread, str(count or ""))
    return table


def score_rows(report: dict[str, Any]) -> list[tuple[str, str, float, float | None, int | None]]:
    """One row a metric, as :data:`SCORE_COLUMNS` names them; the fourth is the standard error."""
    rows = []
    for task, scores in report["tasks"].items():
        for metric, value in scores.items():
            if metric == "samples" or "_stderr" in metric:
                continue
            name, comma, filtered = metric.partition(",")
            error = scores.get(f"{name}_stderr{comma}{filtered}")
            rows.append((task, metric, value, error, scores["samples"]))
    return rows
