"""``linrec eval``: a checkpoint through lm-eval, on the kit's own tasks or any stock task by name."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linrec.evals.report import report_files
from linrec.evals.task_loading import check_tasks, checked_names, load_tasks, quiet
from linrec.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from linrec.models.language_model import LanguageModel


def evaluate(
    checkpoint: str | Path | LanguageModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    rolling_window: int | None = None,
    max_state_bytes: int = 2**30,
    metadata: dict[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a checkpoint folder (or a model in memory) on lm-eval tasks.

    Args:
        tasks: names of the kit's tasks (:func:`~linrec.evals.task_loading.own_tasks`), of stock lm-eval
            tasks, groups or tags.
        limit: only the first ``limit`` documents of each task.
        num_fewshot: examples before each question; None leaves it to the task.
        rolling_window, max_state_bytes: see :class:`linrec.evals.lm_eval_model.LinrecLM`.
        metadata: options of the tasks' builders, e.g. ``{"questions": 100}``.
        out: where the report goes: JSON, and beside it the same as HTML (see
            :func:`linrec.evals.report.report_files`). Both are written atomically.

    Returns:
        ``{"tasks": {name: {metric: value, metric_stderr: value, "samples": n}}, "seconds", ...}``.

    Raises:
        UnknownNameError: no such task.
        DatasetError: a stock task's data set cannot be fetched.
        CheckpointError: the folder is not a checkpoint.
        FileError: the report cannot be written where it should go; found before any work.
        ConfigError: an option of a task, of its metadata or of this call that would not be honoured.
    """
    names = checked_names(tasks)
    files = report_files(out)
    with quiet(progress):
        from lm_eval import simple_evaluate

        from linrec.evals.lm_eval_model import LinrecLM

        model = LinrecLM(
            checkpoint,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            rolling_window=rolling_window,
            max_state_bytes=max_state_bytes,
        )
        manager, loaded = load_tasks(names, metadata)
        check_tasks(loaded, num_fewshot)
        started = time.perf_counter()
        results = simple_evaluate(
            model=model,
            tasks=loaded,
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            log_samples=False,
            bootstrap_iters=1000,
        )
    assert results is not None
    source = str(checkpoint) if isinstance(checkpoint, str | Path) else "model in memory"
    report = {
        "checkpoint": source,
        "fingerprint": model.model.fingerprint(),
        "tasks": scores_by_task(results),
        "limit": limit,
        "num_fewshot": num_fewshot,
        "rolling_window": rolling_window,
        "seconds": round(time.perf_counter() - started, 3),
        "tokens_processed": model.tokens_processed,
        "peak_state_bytes": model.peak_state_bytes,
        "versions": versions(),
    }
    if files is not None:
        from linrec.evals.eval_report import eval_page

        write_json(files[0], report)
        eval_page(report).write(files[1])
    return report


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


SCORE_COLUMNS = ("task", "metric", "value", "±", "documents")


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


def versions(*more: str) -> dict[str, str]:
    """Versions that a figure depends on; the standard library is the data, so Python's is one of them."""
    found = {"python": platform.python_version()}
    for name in ("linrec", "torch", "lm_eval", *more):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
