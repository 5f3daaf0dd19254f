"""Finding and building lm-eval tasks, the kit's own and stock ones, with errors that say what is missing."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
import os
import pkgutil
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linrec.errors import ConfigError, DatasetError, UnknownNameError
from linrec.evals.harness.ruler import impatient, with_tokenizer

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

TASK_FOLDER = Path(__file__).resolve().parent / "tasks"


def own_tasks() -> list[str]:
    """Names of the kit's tasks; they are built locally and need no network."""
    return sorted(path.stem for path in TASK_FOLDER.glob("linrec_*.yaml"))


def checked_names(tasks: Sequence[str]) -> list[str]:
    """Task names, given one by one or with commas; UnknownNameError where the kit has no such task."""
    names = [name.strip() for task in tasks for name in task.split(",") if name.strip()]
    if not names:
        raise UnknownNameError(f"expected at least one task; the kit's own are {', '.join(own_tasks())}")
    unknown = [n for n in names if n.startswith("linrec_") and n not in own_tasks()]
    if unknown:
        raise UnknownNameError(f"no task {unknown[0]!r}; the kit's own are {', '.join(own_tasks())}")
    return names


def load_tasks(names: list[str], metadata: dict[str, Any] | None) -> tuple[TaskManager, list[Any]]:
    """The tasks, built here and not inside lm-eval, so that a missing data set is told from a bug."""
    from lm_eval.tasks import TaskManager

    # Indexing lm-eval's thousands of YAML files takes ten seconds; our own tasks do not need them.
    ours_only = set(names) <= set(own_tasks())
    if ours_only:
        _check_metadata(metadata or {})
    known = (metadata or {}) if ours_only else with_tokenizer(metadata or {})
    manager = TaskManager(include_path=str(TASK_FOLDER), include_defaults=not ours_only, metadata=known)
    loaded: list[Any] = []
    for name in names:
        if name not in manager.all_tasks and not Path(name).is_file():
            near = difflib.get_close_matches(name, [*manager.all_tasks, *own_tasks()], n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise UnknownNameError(f"lm-eval has no task, group or tag {name!r}{hint}")
        try:
            with impatient():
                built = manager.load([name])
        except Exception as error:
            raise explained(name, error) from error
        loaded.extend(built.get("groups", {}).values() or built["tasks"].values())
    return manager, loaded


def check_tasks(loaded: Sequence[Any], num_fewshot: int | None) -> None:
    """ConfigError for what lm-eval or the model would not honour, before anything is computed."""
    from linrec.evals.harness.generation_options import GenerationOptions

    for task in (task for item in loaded for task in _leaves(item)):
        if num_fewshot and task.get_config("num_fewshot") == 0:
            raise ConfigError(
                f"num_fewshot: task {task.task_name!r} is defined without examples, got {num_fewshot}; leave it out"
            )
        if task.OUTPUT_TYPE == "generate_until":
            try:
                GenerationOptions.of(task.get_config("generation_kwargs"))
            except ConfigError as error:
                raise ConfigError(f"task {task.task_name!r}: {error}") from None


def _leaves(item: Any) -> list[Any]:
    """The tasks of a group, or the task itself."""
    return item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item]


def _check_metadata(metadata: dict[str, Any]) -> None:
    """ConfigError for what no builder of the kit's tasks takes."""
    known: set[str] = set()
    for name in own_tasks():
        text = (TASK_FOLDER / f"{name}.yaml").read_text("utf-8")
        found = re.search(r"custom_dataset: !function (\S+)\.(\w+)", text)
        assert found is not None, f"{name}.yaml names no builder"
        builder = pkgutil.resolve_name(":".join(found.groups()))
        known |= {
            p.name for p in inspect.signature(builder).parameters.values() if p.kind is not p.VAR_KEYWORD
        }
    if unknown := sorted(set(metadata) - known):
        raise ConfigError(
            f"metadata: no task takes {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )


def explained(name: str, error: Exception) -> Exception:
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


@contextlib.contextmanager
def quiet(progress: bool) -> Iterator[None]:
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
