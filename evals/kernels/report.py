"""The report on all kernels: what is compiled for which GPU, what it needs, what it moves, and what has got worse.

``linrec kernels`` prints it. Compiling everything for four architectures takes many minutes, so the figures are kept
in a baseline file together with a hash of all that decides the machine code (source, specialisation, options, target
and version of Triton): what has the same hash has the same figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from linrec.errors import ConfigError, LinrecError
from linrec.evals.kernels.capture import Launch
from linrec.evals.kernels.cases import record
from linrec.evals.kernels.machine_code import Resources, measure
from linrec.evals.kernels.targets import Gpu, gpu
from linrec.files import write_text
from linrec.reading import read_json


@dataclass
class Compiled:
    """One launch of a case, compiled for one GPU."""

    kernel: str
    config: str
    key: str
    resources: Resources


@dataclass
class Moved:
    """What one launch or torch operation moves and computes."""

    name: str
    bytes: float
    flops: float = 0.0


@dataclass
class Row:
    """One direction of a case at one width on one GPU."""

    case: str
    width: int
    architecture: str
    compiled: list[Compiled] = field(default_factory=list)
    minimum: int = 0
    moved: list[Moved] = field(default_factory=list)  # empty where traffic was not counted
    least_flops: int = 0  # of products

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.case}, {self.width}, {self.architecture}"

    @property
    def ratio(self) -> float | None:
        """Bytes moved over the minimum."""
        return sum(m.bytes for m in self.moved) / self.minimum if self.moved else None

    def problems(self) -> list[str]:
        """What is wrong with this row on its own, in words. sm_100 may spill; the others may not."""
        spills = self.architecture == "sm_100"
        return [
            f"{self.name}: {one.kernel} {problem}"
            for one in self.compiled
            for problem in one.resources.problems(spills)
        ]


def compiled_rows(
    cases: Iterable[str], widths: Iterable[int], architectures: Iterable[str], known: Iterable[Row] = ()
) -> list[Row]:
    """Every launch of these cases with its resources; figures of ``known`` rows are taken over where the keys agree."""
    figures = {one.key: one.resources for row in known for one in row.compiled}
    rows: list[Row] = []
    jobs: dict[str, tuple[Launch, Gpu]] = {}
    for architecture in architectures:
        target = gpu(architecture)
        for case in cases:
            for width in widths:
                for recorded in record(case, width, architecture):
                    row = Row(
                        recorded.case,
                        width,
                        architecture,
                        minimum=recorded.minimum,
                        least_flops=recorded.least_flops,
                    )
                    for launch in recorded.recording.launches:
                        key = launch.key(target)
                        row.compiled.append(Compiled(launch.name, launch.config, key, Resources()))
                        if key not in figures:
                            jobs[key] = (launch, target)
                    rows.append(row)
    figures |= _measured(jobs)
    for row in rows:
        for one in row.compiled:
            one.resources = figures[one.key]
    return rows


def _measured(jobs: dict[str, tuple[Launch, Gpu]]) -> dict[str, Resources]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the compilers run outside Python's lock
        return dict(zip(jobs, pool.map(lambda job: measure(*job), jobs.values()), strict=True))


def count_traffic(rows: Sequence[Row]) -> None:
    """Fill in ``moved``, from the launches walked through in an interpreter process."""
    wanted = sorted({(row.case.rsplit(" ", 1)[0], row.width, row.architecture) for row in rows})
    done = subprocess.run(
        [sys.executable, "-m", "linrec.evals.kernels.report", json.dumps(wanted)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise LinrecError(f"counting traffic failed: {done.stderr.strip().splitlines()[-1:]}")
    counted = {
        (case, width, architecture): moved
        for case, width, architecture, moved in json.loads(done.stdout.splitlines()[-1])
    }
    for row in rows:
        row.moved = [Moved(**m) for m in counted[row.case, row.width, row.architecture]]


def _count(wanted: list[tuple[str, int, str]]) -> list[tuple[str, int, str, list[dict[str, Any]]]]:
    """In the interpreter process; architectures with the same launches are counted once."""
    from linrec.evals.kernels.traffic import traffic

    found, cache = [], {}
    for case, width, architecture in wanted:
        for recorded in record(case, width, architecture):
            moved = [Moved(op.name, op.read + op.written) for op in recorded.recording.torch_ops]
            for number, launch in enumerate(recorded.recording.launches):
                same = (recorded.case, width, number, launch.grid, launch.config)
                if same not in cache:
                    counted = traffic(launch)
                    cache[same] = Moved(launch.name, counted.bytes, counted.flops)
                moved.append(cache[same])
            found.append((recorded.case, width, architecture, [asdict(m) for m in moved]))
    return found


def regressions(rows: Iterable[Row], baseline: Iterable[Row]) -> list[str]:
    """Where a row is worse than the baseline's, in words: more spills, clearly more registers, shared memory or
    bytes."""
    before = {row.name: row for row in baseline}
    found = []
    for row in rows:
        old = before.get(row.name)
        if old is None:
            found.append(f"{row.name}: not in the baseline")
            continue
        for one, was in zip(row.compiled, old.compiled, strict=False):
            now, then = one.resources, was.resources
            checks: list[tuple[str, Callable[[Resources], int], float]] = [
                ("spills", lambda r: r.spills, 1.0),
                ("registers", lambda r: r.registers, 1.1),
                ("shared memory", lambda r: r.shared, 1.1),
            ]
            found += [
                f"{row.name}: {one.kernel}: {what} {get(then)} -> {get(now)}"
                for what, get, slack in checks
                if get(now) > slack * get(then)
            ]
        if row.ratio and old.ratio and row.ratio > 1.02 * old.ratio:
            found.append(f"{row.name}: bytes over the minimum {old.ratio:.2f} -> {row.ratio:.2f}")
    return found


@dataclass
class Baseline:
    """Figures kept in the repository, and the version of Triton they are from."""

    triton: str = ""
    rows: list[Row] = field(default_factory=list)


def load(path: Path) -> Baseline:
    """A baseline file; empty if there is no file. Raises ConfigError for a file that is none."""
    if not os.path.lexists(path):
        return Baseline()
    data = read_json(path, ConfigError)
    try:
        return Baseline(str(data["triton"]), [_row(row) for row in data["rows"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: expected what `linrec kernels --write` writes ({error!r})") from error


def _row(row: dict[str, Any]) -> Row:
    compiled = [Compiled(**{**one, "resources": Resources(**one["resources"])}) for one in row["compiled"]]
    return Row(**{**row, "compiled": compiled, "moved": [Moved(**moved) for moved in row["moved"]]})


def save(rows: Iterable[Row], path: Path) -> None:
    """Write a baseline file, one line a row."""
    import triton

    lines = ",\n".join(json.dumps(asdict(row), sort_keys=True) for row in rows)
    write_text(path, f'{{"triton": "{triton.__version__}", "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    print(json.dumps(_count([tuple(x) for x in json.loads(sys.argv[1])])))
