"""``linrec suite``: every problem, candidate, rate and seed of a suite, what is already on file left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from linrec.errors import UnknownNameError
from linrec.evals.records import fingerprint, shown_from, versions
from linrec.evals.resume import run_missing
from linrec.evals.small import layer_spec
from linrec.evals.suites import groups, induction, mad, modular, mqar, parity, selective_copy
from linrec.evals.suites.page import page
from linrec.evals.suites.picture import draw
from linrec.evals.suites.suite import Candidate, Problem, Settings, Suite
from linrec.evals.suites.trainer import run

SUITES: dict[str, Callable[[str], Suite]] = {
    "mqar": mqar.suite,
    "parity": parity.suite,
    "modular": modular.suite,
    "groups": groups.suite,
    "mad": mad.suite,
    "selective_copy": selective_copy.suite,
    "induction": induction.suite,
}
SIZES = ("small", "full")


@dataclass(frozen=True)
class Job:
    """One run."""

    suite: str
    problem: Problem
    candidate: Candidate
    settings: Settings
    seed: int

    def describe(self) -> dict[str, Any]:
        """All that the result depends on."""
        return {
            "suite": self.suite,
            "problem": self.problem.describe(),
            "candidate": asdict(self.candidate),
            "settings": asdict(self.settings),
            "seed": self.seed,
        }


def make_suite(name: str, size: str) -> Suite:
    """Raises UnknownNameError for a suite or size that does not exist."""
    if name not in SUITES:
        raise UnknownNameError(f"no suite {name!r}; there are {', '.join(SUITES)}")
    if size not in SIZES:
        raise UnknownNameError(f"no size {size!r}; there are {', '.join(SIZES)}")
    return SUITES[name](size)


def jobs(suite: Suite, seeds: Sequence[int]) -> Iterator[Job]:
    """Seeds in the outer loop, so that an early end still leaves every candidate with some."""
    rates = suite.rates or (suite.settings.lr,)
    for seed in seeds:
        for problem in suite.problems:
            for candidate in suite.candidates:
                for rate in rates:
                    yield Job(suite.name, problem, candidate, replace(suite.settings, lr=rate), seed)


def run_suite(
    suite: Suite,
    out: str | Path,
    *,
    seeds: Sequence[int] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Run what is missing of ``suite`` into ``out/NAME.jsonl``, draw ``out/NAME.png``, write ``out/NAME.html`` and
    return the suite's records.

    A record is written when its run ends; lines of other settings in the file are left alone.
    """
    path = Path(out) / f"{suite.name}.jsonl"
    planned = {fingerprint(job.describe()): job for job in jobs(suite, seeds or range(suite.seeds))}
    records = run_missing(
        path, planned, lambda job, bar: _record(job, device, bar), f"suite {suite.name}", progress
    )
    if records:
        with shown_from(path):
            draw(suite, records, path.with_suffix(".png"))
            page(suite, records, path.with_suffix(".png")).write(path.with_suffix(".html"))
    return records


def _record(job: Job, device: str, bar: Progress) -> dict[str, Any]:
    name = f"{job.problem.name}, {job.candidate.label}, width {job.candidate.width}, seed {job.seed}"
    task = bar.add_task(name, total=job.settings.steps, note="")

    def report(step: int, loss: float, right: float) -> None:
        bar.update(task, completed=step, description=f"{name}: loss {loss:.3f}, held out {right:.3f}")

    outcome = run(job.problem, job.candidate, job.settings, job.seed, device=device, report=report)
    bar.remove_task(task)
    scores = "  ".join(f"{test} {score:.3f}" for test, score in outcome.scores.items())
    bar.console.print(f"{name}: {scores}  ({outcome.steps} steps, {outcome.seconds:.0f} s)")
    return {
        **job.describe(),
        **asdict(outcome),
        "device": device,
        "versions": versions(),
    }


def with_rules(suite: Suite, specs: Sequence[str]) -> Suite:
    """The suite with other candidates: a label of its own ones, or ``layer[+layer]:option=value,...``.

    Options belong to the last layer of the pattern; sizes are those of the suite's first candidate.
    Raises ConfigError for an unknown layer or option.
    """
    chosen: list[Candidate] = []
    for spec in specs:
        own = [c for c in suite.candidates if c.label == spec]
        chosen += own or [_candidate(spec, suite.candidates[0], suite.problems[0].vocab_size)]
    return replace(suite, candidates=tuple(chosen))


def _candidate(spec: str, like: Candidate, vocab_size: int) -> Candidate:
    pattern, options = layer_spec(spec)
    candidate = replace(like, label=spec, pattern=pattern, options=options)
    candidate.config(vocab_size)  # an unknown name is better told before the first run than during the last
    return candidate
