"""``linrec eval``: a checkpoint through lm-eval, on the kit's own tasks or any stock task by name."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linrec.errors import DatasetError, UnknownNameError
from linrec.files import write_text

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from rich.table import Table

    from linrec.models.language_model import LanguageModel

TASK_FOLDER = Path(__file__).resolve().parent / "tasks"


def own_tasks() -> list[str]:
    """Names of the kit's tasks; they are built locally and need no network."""
    return sorted(path.stem for path in TASK_FOLDER.glob("linrec_*.yaml"))


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
    metadata: dict[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a checkpoint folder (or a model in memory) on lm-eval tasks.

    Args:
        tasks: names of the kit's tasks (:func:`own_tasks`), of stock lm-eval tasks, groups or tags.
        limit: only the first ``limit`` documents of each task.
        metadata: options of the tasks' builders, e.g. ``{"questions": 100}``.
        rolling_window: see :class:`linrec.evals.lm_eval_model.LinrecLM`.
        out: a file for the report, JSON, written atomically.

    Returns:
        ``{"tasks": {name: {metric: value, metric_stderr: value, "samples": n}}, "seconds", ...}``.

    Raises:
        UnknownNameError: no such task.
        DatasetError: a stock task's data set cannot be fetched.
        CheckpointError: the folder is not a checkpoint.
    """
    names = _checked_names(tasks)
    with _quiet(progress):
        from lm_eval import simple_evaluate

        from linrec.evals.lm_eval_model import LinrecLM

        model = LinrecLM(
            checkpoint, device=device, dtype=dtype, batch_size=batch_size, rolling_window=rolling_window
        )
        manager, loaded = _load(names, metadata)
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
        "tasks": _scores(results),
        "limit": limit,
        "rolling_window": rolling_window,
        "seconds": round(time.perf_counter() - started, 3),
        "tokens_processed": model.tokens_processed,
        "versions": versions(),
    }
    if out is not None:
        write_json(out, report)
    return report


def _checked_names(tasks: Sequence[str]) -> list[str]:
    names = [name.strip() for task in tasks for name in task.split(",") if name.strip()]
    if not names:
        raise UnknownNameError(f"expected at least one task; the kit's own are {', '.join(own_tasks())}")
    unknown = [n for n in names if n.startswith("linrec_") and n not in own_tasks()]
    if unknown:
        raise UnknownNameError(f"no task {unknown[0]!r}; the kit's own are {', '.join(own_tasks())}")
    return names


def _load(names: list[str], metadata: dict[str, Any] | None) -> tuple[TaskManager, list[Any]]:
    """The tasks, built here and not inside lm-eval, so that a missing data set is told from a bug."""
    from lm_eval.tasks import TaskManager

    # Indexing lm-eval's thousands of YAML files takes ten seconds; our own tasks do not need them.
    ours_only = set(names) <= set(own_tasks())
    manager = TaskManager(
        include_path=str(TASK_FOLDER), include_defaults=not ours_only, metadata=metadata or {}
    )
    loaded: list[Any] = []
    for name in names:
        if name not in manager.all_tasks and not Path(name).is_file():
            near = difflib.get_close_matches(name, [*manager.all_tasks, *own_tasks()], n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise UnknownNameError(f"lm-eval has no task, group or tag {name!r}{hint}")
        try:
            built = manager.load([name])
        except Exception as error:
            raise _explained(name, error) from error
        loaded.extend(built.get("groups", {}).values() or built["tasks"].values())
    return manager, loaded


def _explained(name: str, error: Exception) -> Exception:
    """A DatasetError for what a missing network or data set raises; anything else is a bug, kept as it is."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    fetching = ("datasets", "huggingface_hub", "requests", "httpx", "urllib3", "aiohttp", "evaluate")
    for e in chain:
        if isinstance(e, OSError) or type(e).__module__.partition(".")[0] in fetching:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return DatasetError(
                f"the data of task {name!r} cannot be had here: {first}. Stock tasks are downloaded when "
                f"they run and need a network; these do not: {', '.join(own_tasks())}"
            )
    if isinstance(error, ModuleNotFoundError):
        return DatasetError(f"task {name!r} needs a package that is not installed: {error}")
    return error


def _scores(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """lm-eval's result tables with plain keys: ``acc``, ``acc_stderr``; a filter other than none is kept."""
    tables = {**results["results"], **results.get("groups", {})}
    scores: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        row: dict[str, Any] = {}
        for key, value in table.items():
            metric, _, filtered = key.partition(",")
            if isinstance(value, int | float) and not isinstance(value, bool) and _ and metric:
                row[metric if filtered == "none" else key] = float(value)
        count = results.get("n-samples", {}).get(name)
        row["samples"] = count["effective"] if count else None
        scores[name] = row
    return scores


def results_table(report: dict[str, Any]) -> Table:
    """The report as a rich table."""
    from rich.table import Table

    table = Table(title=f"{report['checkpoint']}  ({report['seconds']:.1f} s)")
    for column in ("task", "metric", "value", "±", "documents"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for task, row in report["tasks"].items():
        for metric, value in row.items():
            if metric == "samples" or "_stderr" in metric:
                continue
            name, comma, filtered = metric.partition(",")
            error = row.get(f"{name}_stderr{comma}{filtered}")
            spread = "" if error is None else f"{error:.4f}"
            table.add_row(task, metric, f"{value:.4f}", spread, str(row["samples"] or ""))
    return table


def versions() -> dict[str, str]:
    """Versions that a figure depends on; the standard library is the data, so Python's is one of them."""
    found = {"python": platform.python_version()}
    for name in ("linrec", "torch", "lm_eval"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """lm-eval and datasets report every step at warning level; only their errors are for the user."""
    import datasets  # noqa: F401  (it sets its own and huggingface_hub's levels when it is first imported)
    import huggingface_hub  # noqa: F401

    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets", "huggingface_hub")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        if not progress:
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
