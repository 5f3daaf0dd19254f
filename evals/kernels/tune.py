"""``linrec tune``: launch configurations of the matrix kernels, timed on the GPU at hand and written to a file.

For each row that a rule's forward, backward or step looks up, candidates take its place one after another while all
other rows stay as they are, and the whole call is timed, its result checked against torch's first. What does not
compile, does not fit or computes something else is refused, with the reason. The fastest stays if it is clearly faster.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from linrec.errors import BackendError, LinrecError
from linrec.evals.bench.gpu_times import drawn

if TYPE_CHECKING:
    from linrec.kernels.matrix.launch_table import At, Launch, Rows

GAIN = 0.98  # of the time before: what is nearer may be noise


class Space(NamedTuple):
    """What is tried for the numbers of a launch; a tile of 0 is all of K or V."""

    keys: tuple[int, ...] = (0,)
    values: tuple[int, ...] = (0,)
    warps: tuple[int, ...] = (4, 8)
    stages: tuple[int, ...] = (1, 2, 3)


OVER_TIME = Space(values=(16, 32, 64))
SPACES = {
    "scores": Space(keys=(16, 32, 64, 128)),
    "forward_scan": OVER_TIME,
    "entry_states": OVER_TIME,
    "state_gradients": OVER_TIME,
    "chunk_gradients": Space(keys=(16, 32, 64), values=(16, 32, 64), stages=(1, 2)),
    "decode": Space(values=(16, 32, 64), warps=(2, 4, 8), stages=(1,)),
}


class Job(NamedTuple):
    """What is run and timed: of a rule with K = V = width the part ``forward``, ``backward``, ``both`` or ``step``."""

    rule: str
    width: int
    dtype: torch.dtype
    part: str


class Bench(Protocol):
    """Runs jobs with the rows that are in use."""

    architecture: str

    def milliseconds(self, job: Job) -> float:
        """Time of a job, after its result has been checked; an error where it cannot run, or is wrong."""
        ...

    def confirm(self, job: Job) -> None:
        """An error where the job cannot run, or is wrong, in another shape (too few heads to fill a GPU)."""
        ...


class Lost(BackendError):
    """A launch has broken this process' use of the GPU: nothing after it can be measured."""


@dataclass
class Found:
    """What a search ends with; times in milliseconds, None where it did not run."""

    best: Launch | int
    before: float | None
    after: float | None
    refused: dict[Launch | int, str] = field(default_factory=dict)


@dataclass
class Tuned:
    """A row that was searched for, with what was launched before."""

    job: Job
    at: At
    current: Launch | int
    found: Found

    @property
    def changed(self) -> bool:
        """Whether another candidate than the current one is best."""
        return self.found.best != self.current


def jobs(
    rules: Iterable[str], widths: Sequence[int], dtypes: Sequence[torch.dtype], chunks: bool
) -> Iterator[Job]:
    """In this order: the length of chunks decides what is good for the rest, so it is chosen first."""
    parts = ("both",) * chunks + ("forward", "backward", "step")
    return (Job(*one) for one in itertools.product(rules, widths, dtypes, parts))


def tune(
    wanted: Iterable[Job], bench: Bench, kept: Callable[[Rows, list[Tuned]], None], say: Callable[[str], None]
) -> list[Tuned]:
    """Search for each row that these jobs reach, once; ``kept`` gets all rows after each that was found.

    The search starts from the rows in use (a file that was asked for, then the table), and these are kept too. Lost
    where a candidate takes the GPU with it.
    """
    from linrec.kernels.matrix.launches import asked

    rows, done = dict(asked()), dict[Any, Tuned]()
    for job in wanted:
        name = f"{job.rule}, {job.width} wide, {str(job.dtype).removeprefix('torch.')}, {job.part}"
        try:
            reached = stages_of(job, bench.architecture, rows)
        except LinrecError as error:
            say(f"{name}: left out: {reason(error)}")
            continue
        if not reached:
            say(f"{name}: looks up no row of this width")
        for at in reached:
            if at not in done:
                say(f"{name}: {at.stage}, {at.path}")
                done[at] = _tuned(job, at, rows, bench)
                rows |= {at: done[at].found.best} if done[at].changed else {}
                kept(rows, list(done.values()))
    return list(done.values())


def _tuned(job: Job, at: At, rows: Rows, bench: Bench) -> Tuned:
    from linrec.kernels.matrix.launch_table import CHUNK
    from linrec.kernels.matrix.launches import chunk_length, launch_for, using

    def instead(run: Callable[[Job], Any], one: Launch | int) -> Any:
        try:
            with using({**rows, at: one}):
                return run(job)
        except Lost as error:
            raise Lost(f"{' '.join(map(str, at))} with {one}: {error}") from error

    with using(rows):
        current = chunk_length(*at[1:]) if at.stage == CHUNK else launch_for(*at)
    measure, confirm = partial(instead, bench.milliseconds), partial(instead, bench.confirm)
    return Tuned(job, at, current, search(current, candidates(at), measure, confirm))


def search(
    current: Launch | int,
    tried: Iterable[Launch | int],
    measure: Callable[[Launch | int], float],
    confirm: Callable[[Launch | int], None],
) -> Found:
    """The fastest of these, if it also passes ``confirm`` and is faster than ``current`` when both are timed again."""
    times: dict[Launch | int, float] = {}
    refused: dict[Launch | int, str] = {}
    for one in dict.fromkeys([current, *tried]):
        try:
            times[one] = measure(one)
        except Lost:
            raise
        except Exception as error:  # a compiler fails in many ways
            refused[one] = reason(error)
    limit = GAIN * times.get(current, math.inf)
    for one in sorted((x for x in times if times[x] < limit), key=times.__getitem__):
        try:
            confirm(one)
            after = measure(one)
            before = measure(current) if current in times else None
        except Lost:
            raise
        except Exception as error:
            refused[one] = reason(error)
            continue
        if before is None or after < GAIN * before:
            return Found(one, before, after, refused)
    return Found(current, times.get(current), times.get(current), refused)


def reason(error: Exception) -> str:
    """The kind of an error and the last line that says something: compilers print the code first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:160]}" if lines else type(error).__name__


def candidates(at: At) -> list[Launch | int]:
    """What is tried for a row: tiles no wider than the kernels' own padding."""
    from linrec.kernels.matrix.launch_file import TOKENS
    from linrec.kernels.matrix.launch_table import CHUNK, Launch

    if at.stage == CHUNK:
        return list(TOKENS)
    return [Launch(*one) for one in itertools.product(*SPACES[at.stage]) if max(one[0], one[1]) <= at.width]


class _Seen(dict[Any, Any]):
    """Rows that remember what was looked up."""

    def __init__(self, rows: Rows):
        super().__init__(rows)
        self.looked_up: dict[At, None] = {}

    def get(self, at: At, default: Any = None) -> Any:
        self.looked_up[at] = None
        return super().get(at, default)


def stages_of(job: Job, architecture: str, rows: Rows) -> list[At]:
    """The rows that a job looks up, in order, found on tensors without data: nothing runs.

    Lengths of chunks count for the part ``both`` alone. A rule that adds a column to v looks up rows of the next width,
    for which it is no measure: they are left out. BackendError where the kernels cannot run the job.
    """
    from linrec.evals.kernels.capture import recording
    from linrec.kernels.architecture import pretend
    from linrec.kernels.matrix.launch_table import CHUNK, padded
    from linrec.kernels.matrix.launches import using

    seen = _Seen(rows)
    length = 1 if job.part == "step" else 65
    _, inputs = drawn(job.rule, job.dtype, "meta", **sizes(job.width, batch=2, length=length, heads=1))
    with pretend(architecture), recording(), using(seen):
        for part in ("forward", "backward") if job.part == "both" else (job.part,):
            _run(job.rule, part, inputs, seen)
    found = [at for at in seen.looked_up if at.width == padded(job.width)]
    return [at for at in found if (at.stage == CHUNK) == (job.part == "both")]


def _run(rule: str, part: str, inputs: dict[str, Tensor], seen: _Seen) -> None:
    """One part; of a backward what its forward looked up is forgotten."""
    from linrec.rules import RULES

    call = RULES[rule].step if part == "step" else RULES[rule]
    leaves = {n: x.detach().requires_grad_(part == "backward") for n, x in inputs.items()}
    o = call(**leaves, backend="triton").o
    if part == "backward":
        seen.looked_up.clear()
        torch.autograd.grad(o, list(leaves.values()), torch.empty_like(o), allow_unused=True)


def sizes(width: int, *, batch: int, length: int, heads: int) -> dict[str, int]:
    """Dimensions of a job by the legend's names, and by Mamba's."""
    wide = dict.fromkeys(("K", "V", "N", "P"), width)
    return {"B": batch, "T": length, "H": heads, "HV": heads, "G": heads, **wide}
