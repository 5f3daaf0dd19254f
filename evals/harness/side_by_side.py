"""The ``linrec`` model class beside lm-eval's stock Hugging Face wrapper: same weights, tasks and machine.

Both run the same requests through lm-eval. Tokens are counted where both pass, at the embedding of the model,
padding included; seconds are those inside the wrapper's request methods, without building tasks or metrics.
The two take turns, and the fastest turn of each counts: other work on the machine only ever adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from linrec.evals.harness.scores import scores_by_task
from linrec.evals.harness.task_loading import check_tasks, checked_names, load_tasks, quiet
from linrec.evals.harness.wrappers import Wrapped, wrappers
from linrec.evals.pages.report import cell_text, report_files
from linrec.evals.records import versions, write_json
from linrec.models.language_model import LanguageModel

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from rich.table import Table

    from linrec.evals.pages.report import Report

WRAPPERS = ("hf", "linrec")
REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def side_by_side(
    checkpoint: str | Path | LanguageModel,
    tasks: Sequence[str],
    *,
    shots: Sequence[int] = (0, 5),
    limit: int | None = 100,
    batch_size: int = 8,
    turns: int = 1,
    metadata: dict[str, Any] | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run every task at every number of shots through both wrappers, ``turns`` times.

    Returns:
        ``{"runs": [{"task", "shots", "hf": {"tokens", "seconds", "scores"}, "linrec": {...}, "fewer_tokens",
        "faster", "requests", "largest_difference", "equal_texts"}], ...}``. The last two compare the answers
        request by request: log-likelihoods in nats, generated texts as the share that is equal.

    Raises:
        UnknownNameError, DatasetError, CheckpointError, FileError: as :func:`linrec.evals.harness.run.evaluate`.
    """
    names = checked_names(tasks)
    files = report_files(out)
    model, both = wrappers(checkpoint, batch_size, device)
    runs = []
    with quiet(progress):
        for name in names:
            for shot in shots:
                # Built anew for each number of shots: lm-eval will not raise one that was set to 0.
                manager, loaded = load_tasks([name], metadata)
                check_tasks(loaded, shot)
                asked = {"tasks": loaded, "task_manager": manager, "num_fewshot": shot, "limit": limit}
                found = _take_turns(both, turns, asked)
                runs.append(_run(name, shot, found))
    report = {
        **_described(checkpoint, model),
        "limit": limit,
        "batch_size": batch_size,
        "turns": turns,
        "metadata": metadata or {},
        "runs": runs,
        "versions": versions("transformers"),
    }
    if files is not None:
        write_json(files[0], report)
        side_by_side_page(report).write(files[1])
    return report


def _described(checkpoint: str | Path | LanguageModel, model: Any) -> dict[str, Any]:
    """What ran, and on what."""
    return {
        "checkpoint": "model in memory" if checkpoint is model else str(checkpoint),
        "fingerprint": model.fingerprint(),
        "pattern": list(getattr(model.config, "layer_names", [getattr(model.config, "model_type", "")])),
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": str(next(model.parameters()).device),
        "threads": torch.get_num_threads(),
    }


def _take_turns(both: dict[str, Wrapped], turns: int, asked: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each wrapper needs for a task; tokens and answers are the same at every turn."""
    found: dict[str, dict[str, Any]] = {}
    for _turn in range(turns):
        for name in WRAPPERS:
            new = _measured(both[name].make(), asked, both[name].embedding)
            if name not in found or new["seconds"] < found[name]["seconds"]:
                found[name] = new
    return found


def _measured(lm: LM, asked: dict[str, Any], embedding: nn.Module) -> dict[str, Any]:
    """Tokens, seconds, scores and answers of one task through one wrapper."""
    from lm_eval import simple_evaluate

    clock = _timed(lm)
    with _counted(embedding) as tokens:
        results = simple_evaluate(model=lm, log_samples=True, bootstrap_iters=0, **asked)
    assert results is not None
    answers = [
        answer
        for samples in results["samples"].values()
        for sample in sorted(samples, key=lambda s: s["doc_id"])
        for repeats in sample["resps"]
        for answer in repeats
    ]
    return {
        "tokens": sum(tokens),
        "seconds": round(sum(clock), 3),
        "scores": scores_by_task(results),
        "answers": answers,
    }


def _timed(lm: LM) -> list[float]:
    """Seconds of each call of a request method from now on."""
    seconds: list[float] = []

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                seconds.append(time.perf_counter() - start)

        return call

    for name in REQUESTS:
        setattr(lm, name, timed(getattr(lm, name)))
    return seconds


@contextmanager
def _counted(embedding: nn.Module) -> Iterator[list[int]]:
    """Sizes of the token batches that reach the model."""
    sizes: list[int] = []
    handle = embedding.register_forward_hook(lambda module, inputs, output: sizes.append(inputs[0].numel()))
    try:
        yield sizes
    finally:
        handle.remove()


def _run(name: str, shots: int, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One row of the report: what both wrappers took, and how far their answers are apart."""
    pairs = list(zip(*(found[w].pop("answers") for w in WRAPPERS), strict=True))
    numbers = [(_number(a), _number(b)) for a, b in pairs if not isinstance(a, str)]
    texts = [a == b for a, b in pairs if isinstance(a, str)]
    hf, ours = (found[w] for w in WRAPPERS)
    return {
        "task": name,
        "shots": shots,
        **found,
        "fewer_tokens": hf["tokens"] / ours["tokens"],
        "faster": hf["seconds"] / ours["seconds"],
        "requests": len(pairs),
        "largest_difference": max((abs(a - b) for a, b in numbers), default=None),
        "equal_texts": sum(texts) / len(texts) if texts else None,
    }


def _number(answer: Any) -> float:
    """The log-likelihood of a (log-likelihood, greedy) pair, or of a rolling request."""
    return float(answer[0] if isinstance(answer, list | tuple) else answer)


RUN_FIELDS = ("checkpoint", "parameters", "limit", "metadata", "batch_size", "turns", "device", "threads")
COLUMNS = (
    "task",
    "shots",
    "requests",
    "tokens, hf",
    "tokens, linrec",
    "fewer",
    "seconds, hf",
    "seconds, linrec",
    "faster",
    "largest difference",
    "equal texts",
)


def side_by_side_rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    """One row a run, as :data:`COLUMNS` names them."""
    rows = []
    for r in report["runs"]:
        tokens, seconds = ([r[w][key] for w in WRAPPERS] for key in ("tokens", "seconds"))
        differences = (r["largest_difference"], r["equal_texts"])
        ratios = (f"{r['fewer_tokens']:.1f}x", f"{r['faster']:.1f}x")
        head = (r["task"], r["shots"], r["requests"])
        rows.append((*head, *tokens, ratios[0], *seconds, ratios[1], *differences))
    return rows


def side_by_side_table(report: dict[str, Any]) -> Table:
    """For the terminal: a line a figure, a column a run."""
    from rich.table import Table

    table = Table(show_header=False)
    for line in zip(COLUMNS, *side_by_side_rows(report), strict=True):
        table.add_row(*map(cell_text, line))
    return table


def side_by_side_page(report: dict[str, Any]) -> Report:
    """The page of a report."""
    from linrec.evals.pages.pictures import ratio_figure
    from linrec.evals.pages.report import Report

    page = Report("One trie, forked states", "the linrec model class beside lm-eval's Hugging Face wrapper")
    page.text(
        "Both score the same requests with the same weights. Tokens are those that the model read, padding "
        "included; seconds are those of the wrapper's request methods. The largest difference is between two "
        "log-likelihoods of one request, in nats; equal texts is the share of generations that agree."
    )
    labels = [f"{r['task']}, {r['shots']} shots" for r in report["runs"]]
    ratios = {
        "fewer tokens": [r["fewer_tokens"] for r in report["runs"]],
        "faster": [r["faster"] for r in report["runs"]],
    }
    page.picture(ratio_figure(labels, ratios), "How many times fewer tokens and less time linrec takes")
    page.table(COLUMNS, side_by_side_rows(report))
    scores = [
        (r["task"], r["shots"], metric, value, r["linrec"]["scores"][task][metric])
        for r in report["runs"]
        for task, row in r["hf"]["scores"].items()
        for metric, value in row.items()
        if metric != "samples" and "_stderr" not in metric
    ]
    page.heading("Scores").table(("task", "shots", "metric", "hf", "linrec"), scores)
    page.heading("Run").table(
        ("", "value"),
        [(name, report[name]) for name in RUN_FIELDS],
        f"layers: {', '.join(report['pattern'])}; weights: sha256 {report['fingerprint']}",
    )
    return page.versions(report["versions"])
