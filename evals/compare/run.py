"""``linrec compare``: train and score what is missing, time all mixers in turn, and show the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from linrec.evals.compare.cost import CostJob
from linrec.evals.compare.setting import MIXERS, Job, Setting, configs, jobs
from linrec.evals.compare.show import comparison_figure, page, summary
from linrec.evals.harness.tasks.stdlib import held_out_modules
from linrec.evals.pages.pictures import save_png
from linrec.evals.records import fingerprint, shown_from, versions
from linrec.evals.resume import run_missing
from linrec.evals.small import parameters
from linrec.models.corpus import Document, standard_library
from linrec.models.language_model import LanguageModel
from linrec.models.measuring import bits_per_byte
from linrec.models.training import train

Record = dict[str, Any]


def run_compare(
    setting: Setting,
    out: str | Path,
    *,
    mixers: Sequence[str] = MIXERS,
    seeds: Sequence[int] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[Record]:
    """Run what is missing into ``out/compare.jsonl``, write picture and page beside it; a summary row a mixer."""
    path = Path(out) / "compare.jsonl"
    models = configs(setting, mixers)
    planned: dict[str, Job | CostJob] = {
        fingerprint(job.describe()): job for job in jobs(setting, models, seeds or range(setting.seeds))
    }
    cost = CostJob(models, setting.training, setting.context, torch.get_num_threads(), device)
    planned[fingerprint(cost.describe())] = cost
    records = run_missing(path, planned, partial(_perform, device), "compare", progress)
    with shown_from(path):
        rows = summary(records)
        figure = comparison_figure(rows, setting)
        save_png(figure, path.with_suffix(".png"))
        page(rows, records, setting, figure).write(path.with_suffix(".html"))
    return rows


def _perform(device: str, job: Job | CostJob, bar: Progress) -> Record:
    if isinstance(job, CostJob):
        return {**job.describe(), "rows": job.measure(bar), "versions": versions()}
    return {**job.describe(), **run(job, device, bar), "device": device, "versions": versions()}


def run(job: Job, device: str = "cpu", bar: Progress | bool = False) -> Record:
    """Train and score one model; the result depends on the job alone (and on rounding). Raises TrainingError."""
    with torch.random.fork_rng():
        torch.manual_seed(job.seed)
        model = LanguageModel(job.config).to(device)
    settings = replace(job.setting.training, seed=job.seed)
    result = train(model, standard_library(), settings, progress=bar)
    last = result.losses[-20:]
    scores = score(model, job.setting)
    if isinstance(bar, Progress):
        for task in bar.task_ids[1:]:
            bar.remove_task(task)
        bar.console.print(f"{job.mixer}, seed {job.seed}: {scores['windows']:.3f} bits per byte in windows, "
                          f"{scores['carried']:.3f} carried ({result.seconds:.0f} s)")  # fmt: skip
    return {
        "parameters": parameters(model),
        "train_loss": sum(last) / len(last),
        "bits_per_byte": scores,
        "seconds": round(result.seconds, 1),
    }


def score(model: LanguageModel, setting: Setting) -> dict[str, float]:
    """Bits per byte of the held-out documents: whole, the state carried, and in windows of the trained length."""
    chosen = held_out_modules(max_document_bytes=setting.document_bytes)[: setting.documents]
    documents = [Document(module.path, module.text.encode()) for module in chosen]
    length = setting.training.seq_len
    windows = [
        Document(f"{path}#{start}", text[start : start + length])
        for path, text in documents
        for start in range(0, len(text), length)
    ]
    return {
        "windows": bits_per_byte(model, windows, batch_size=32),
        "carried": bits_per_byte(model, documents),
    }
