"""``linrec tune`` on a GPU: how its jobs are checked and timed, what is printed, and the file of rows."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from linrec.engines.numerics.backends import NOT_INSTALLED, installed
from linrec.errors import BackendError, ConfigError, UnknownNameError
from linrec.evals.bench.gpu_times import (
    allowances,
    backward_ms,
    caller,
    drawn,
    enough,
    expected,
    forward_ms,
    need_gpu,
    worst,
)
from linrec.evals.kernels.tune import Job, Lost, Tuned, jobs, reason, sizes, tune
from linrec.evals.records import versions, write_json
from linrec.files import check_writable
from linrec.terminal import console, show

if TYPE_CHECKING:
    from rich.table import Table

    from linrec.kernels.matrix.launch_table import Launch, Rows

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
HEADS = 16
TIMED = {"batch": 4, "length": 4096, "heads": HEADS}
# Batch and length are no constants of a kernel: what is checked here is the code that is timed.
CHECKED = {"batch": 4, "length": 1040, "heads": HEADS}
FEW = {"batch": 1, "length": 1000, "heads": 2}  # cut into segments of time, the last chunk not full
STATE_BYTES = 2**29  # of a step that is timed: the kernel takes longer than its launch
MOST = 4096  # sequences of it


class GpuBench:
    """Jobs on a GPU; on the CPU they can be checked in Triton's interpreter, not timed."""

    def __init__(self, device: str = "cuda") -> None:
        from linrec.kernels.architecture import architecture

        self.device = device
        self.architecture = architecture(torch.device(device))
        self._expected = functools.lru_cache(2)(expected)  # a job's rows ask for the same again and again
        self._inputs = functools.lru_cache(1)(lambda *job, **dims: drawn(*job, **dims)[1])
        self._steps = functools.lru_cache(2)(expected_step)

    def milliseconds(self, job: Job) -> float:
        """The median, with a cold cache, of the part at ``TIMED``, after a check at ``CHECKED``."""
        with _kept(self.device):
            if job.part == "step":
                batch = min(MOST, STATE_BYTES // (4 * HEADS * job.width**2))
                return forward_ms(self._checked_step(job, batch, HEADS).run)
            call = self._check(job, CHECKED)
            inputs = self._inputs(job.rule, job.dtype, self.device, **sizes(job.width, **TIMED))
            forward = 0.0 if job.part == "backward" else forward_ms(lambda: call(**inputs))
            return forward + (0.0 if job.part == "forward" else backward_ms(call, inputs))

    def confirm(self, job: Job) -> None:
        """A check with few heads, for which a sequence is cut into segments of time."""
        with _kept(self.device):
            if job.part == "step":
                self._checked_step(job, 1, 2)
            else:
                self._check(job, FEW)

    def _check(self, job: Job, shape: dict[str, int]) -> Any:
        x = self._expected(job.rule, job.dtype, self.device, **sizes(job.width, **shape))
        call = caller(job.rule, x.scale)
        x.check(call, job.rule)
        return call

    def _checked_step(self, job: Job, batch: int, heads: int) -> Step:
        shape = sizes(job.width, batch=batch, length=5, heads=heads)
        step = self._steps(job.rule, job.dtype, self.device, **shape)
        step.check()
        return step


@contextlib.contextmanager
def _kept(device: str) -> Iterator[None]:
    """Lost instead of an error after which the GPU takes no more work from this process."""
    try:
        yield
    except Exception as error:
        if device == "cpu":
            raise
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            raise Lost(
                f"{reason(error)}; the GPU takes no more work from this process, what was found before is in the file"
            ) from error
        torch.cuda.empty_cache()
        raise


@dataclass
class Step:
    """One token after a state; output and next state as torch has them, and how far off others may be."""

    rule: str
    inputs: dict[str, Tensor]
    state: Any
    reference: list[Tensor]
    allowed: list[float]

    def run(self, backend: str = "triton") -> list[Tensor]:
        """The output and the tensors of the next state, without gradients."""
        return _step(self.rule, self.inputs, self.state, backend)

    def check(self) -> None:
        """BackendError where Triton's result is too far off."""
        enough(*worst(self.run(), self.reference, self.allowed), self.rule)


def expected_step(rule: str, dtype: torch.dtype, device: str, **dims: int) -> Step:
    """The last of ``T`` tokens, the state being what torch makes of those before."""
    from linrec.rules import RULES

    exact, inputs = drawn(rule, dtype, device, **dims)
    timed = {n for n, arg in RULES[rule].arguments.items() if "T" in arg.shapes[0]}
    before = {n: x[:, :-1] if n in timed else x for n, x in exact.items()}
    exact, inputs = (
        {n: x[:, -1:].contiguous() if n in timed else x for n, x in given.items()}
        for given in (exact, inputs)
    )
    with torch.no_grad():
        state = RULES[rule](**before, backend="torch").state
    single = tree_map(lambda x: x.float() if x.is_floating_point() else x, state)
    reference = _step(rule, exact, state, "torch")
    rough = _step(rule, inputs, single, "torch")
    return Step(rule, inputs, single, reference, allowances(rough, reference, dtype))


def _step(rule: str, inputs: dict[str, Tensor], state: Any, backend: str) -> list[Tensor]:
    from linrec.rules import RULES

    with torch.no_grad():
        return tree_leaves(tuple(RULES[rule].step(**inputs, state=state, backend=backend)))


def tune_command(
    rules: Sequence[str],
    widths: Sequence[int],
    dtypes: Sequence[str],
    chunks: bool,
    out: Path,
) -> list[Tuned]:
    """Search for the rows of these rules, write ``out`` after each, and print what was found.

    UnknownNameError for a rule or a dtype that there is not, ConfigError for a width, BackendError without a GPU.
    """
    from linrec.rules import get_rule

    names = [get_rule(name).name for name in rules]
    for name in dtypes:
        if name not in DTYPES:
            raise UnknownNameError(f"unknown dtype {name!r}; one of {', '.join(DTYPES)}")
    for width in widths:
        if not 1 <= width <= 256:
            raise ConfigError(f"the kernels hold K and V from 1 to 256, got a width of {width}")
    if out.is_dir():
        raise ConfigError(f"expected the name of a file to write, got the folder {out}")
    check_writable(out.parent)
    need_gpu()
    if not installed():
        raise BackendError(NOT_INSTALLED)
    wanted = jobs(names, widths, [DTYPES[name] for name in dtypes], chunks)
    screen = console()
    with screen.status("tuning"):
        found = tune(wanted, GpuBench(), lambda rows, done: write(rows, done, out), screen.print)
    show(table(found))
    for line in refusals(found):
        screen.print(line)
    return found


def write(rows: Rows, done: Sequence[Tuned], out: Path) -> None:
    """The file that ``LINREC_LAUNCHES`` may name: rows, and for people versions and times."""
    from linrec.kernels.matrix.launch_file import listed

    timed = [
        {
            **one.at._asdict(),
            "rule": one.job.rule,
            "part": one.job.part,
            "before": said(one.current),
            "before_ms": one.found.before,
            "after": said(one.found.best),
            "after_ms": one.found.after,
            "refused": {said(launch): why for launch, why in one.found.refused.items()},
        }
        for one in done
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    write_json(out, {"gpu": gpu, "versions": versions("triton"), "rows": listed(rows), "timed": timed})


def said(launch: Launch | int) -> str:
    """``values=32 warps=4 stages=2``: what is not zero."""
    fields = {"tokens": launch} if isinstance(launch, int) else launch._asdict()
    return " ".join(f"{name}={number}" for name, number in fields.items() if number)


def table(done: Sequence[Tuned]) -> Table:
    """For the terminal: the part that was timed, before and after each row."""
    from rich.table import Table

    made = Table("stage", "path", "width", "bytes", "timed", "before", "ms", "after", "ms", "refused")
    for one in done:
        ms = ["-" if t is None else f"{t:.3f}" for t in (one.found.before, one.found.after)]
        made.add_row(
            one.at.stage, one.at.path, str(one.at.width), str(one.at.size), f"{one.job.rule} {one.job.part}",
            said(one.current), ms[0], said(one.found.best) if one.changed else "the same", ms[1],
            str(len(one.found.refused)),
        )  # fmt: skip
    return made


def refusals(done: Sequence[Tuned]) -> Iterator[str]:
    """A line for each reason that a stage's candidates were refused for."""
    for one in done:
        reasons: dict[str, list[str]] = {}
        for launch, why in one.found.refused.items():
            reasons.setdefault(why, []).append(said(launch))
        for why, which in reasons.items():
            yield f"{one.at.stage}, {one.at.path}, {one.at.width}: {'; '.join(which)}: {why}"
