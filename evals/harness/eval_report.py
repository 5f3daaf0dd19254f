"""The page of one ``linrec eval`` run, made from its report alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from linrec.evals.harness.scores import SCORE_COLUMNS, score_rows
from linrec.evals.pages.pictures import BLUE, STYLE
from linrec.evals.pages.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def eval_page(report: dict[str, Any]) -> Report:
    """Scores as a picture and a table, and what was run."""
    page = Report("Evaluation", report["checkpoint"])
    page.picture(scores_figure(report), "Every metric of every task, with its standard error")
    page.table(SCORE_COLUMNS, score_rows(report))
    page.heading("Run")
    settings = [(name, report[name]) for name in ("limit", "num_fewshot", "rolling_window")]
    settings = [(name, value) for name, value in settings if value is not None]
    measured = [(name, report[name]) for name in ("seconds", "tokens_processed", "peak_state_bytes")]
    page.table(("", "value"), [*settings, *measured])
    return page.text(f"Weights: sha256 {report['fingerprint']}.").versions(report["versions"])


def scores_figure(report: dict[str, Any]) -> Figure:
    """A panel a metric, a bar a task."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = score_rows(report)
    metrics = list(dict.fromkeys(row[1] for row in rows))
    with rc_context(STYLE):
        heights = [1 + sum(row[1] == metric for row in rows) for metric in metrics]
        figure = Figure(figsize=(8, 0.9 + 0.5 * sum(heights)), dpi=120, layout="constrained")
        panels = figure.subplots(len(metrics), 1, squeeze=False, height_ratios=heights)[:, 0]
        for panel, metric in zip(panels, metrics, strict=True):
            shown = [row for row in rows if row[1] == metric]
            errors = [row[3] or 0.0 for row in shown]
            bars = panel.barh([row[0] for row in shown], [row[2] for row in shown], xerr=errors, color=BLUE)
            panel.bar_label(bars, [f"{row[2]:.3f}" for row in shown], padding=4)
            panel.set_xlabel(metric)
            panel.margins(x=0.12)
            panel.invert_yaxis()
    return figure
