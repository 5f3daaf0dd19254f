"""``linrec eval``: a checkpoint through lm-eval, on the kit's own tasks or any stock task by name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linrec.evals.harness.eval_report import eval_page
from linrec.evals.harness.scores import scores_by_task
from linrec.evals.harness.task_loading import check_tasks, checked_names, load_tasks, quiet
from linrec.evals.pages.report import report_files
from linrec.evals.records import versions, write_json

if TYPE_CHECKING:
    from linrec.evals.harness.lm_eval_model import LinrecLM
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
        tasks: names of the kit's tasks (:func:`~linrec.evals.harness.task_loading.own_tasks`), of stock lm-eval
            tasks, groups or tags.
        limit: only the first ``limit`` documents of each task.
        num_fewshot: examples before each question; None leaves it to the task.
        rolling_window, max_state_bytes: see :class:`linrec.evals.harness.lm_eval_model.LinrecLM`.
        metadata: options of the tasks' builders, e.g. ``{"questions": 100}``.
        out: where the report goes: JSON, and beside it the same as HTML (see
            :func:`linrec.evals.pages.report.report_files`). Both are written atomically.

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
    asked = {"limit": limit, "num_fewshot": num_fewshot}
    states: dict[str, Any] = {"rolling_window": rolling_window, "max_state_bytes": max_state_bytes}
    with quiet(progress):
        from linrec.evals.harness.lm_eval_model import LinrecLM

        model = LinrecLM(checkpoint, device=device, dtype=dtype, batch_size=batch_size, **states)
        scores, seconds = _measured(model, names, metadata, asked)
    report = {
        "checkpoint": str(checkpoint) if isinstance(checkpoint, str | Path) else "model in memory",
        "fingerprint": model.model.fingerprint(),
        "tasks": scores,
        **asked,
        "rolling_window": rolling_window,
        "seconds": round(seconds, 3),
        "tokens_processed": model.tokens_processed,
        "peak_state_bytes": model.peak_state_bytes,
        "versions": versions(),
    }
    if files is not None:
        write_json(files[0], report)
        eval_page(report).write(files[1])
    return report


def _measured(
    model: LinrecLM, names: list[str], metadata: dict[str, Any] | None, asked: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], float]:
    """The metrics of each task, and the seconds that lm-eval took for all."""
    from lm_eval import simple_evaluate

    manager, loaded = load_tasks(names, metadata)
    check_tasks(loaded, asked["num_fewshot"])
    started = time.perf_counter()
    results = simple_evaluate(
        model=model, tasks=loaded, task_manager=manager, log_samples=False, bootstrap_iters=1000, **asked
    )
    seconds = time.perf_counter() - started
    assert results is not None
    return scores_by_task(results), seconds
