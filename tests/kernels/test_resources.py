"""Every kernel compiles within each target's means, uses tensor cores, and moves few bytes; none of it gets worse.

Compiling everything takes many minutes. A kernel whose source, specialisation, options, target and Triton are those of
the baseline has the baseline's figures; whatever changed is compiled here. After a change for the better:
``linrec kernels --width 64 --width 128 --width 256 --write``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from linrec.evals.kernels.cases import CASES, WIDTH, WIDTHS  # noqa: E402
from linrec.evals.kernels.report import (  # noqa: E402
    Row,
    compiled_rows,
    count_traffic,
    load,
    regressions,
)
from linrec.evals.kernels.targets import CHECKED  # noqa: E402

BASELINE = load(Path(__file__).with_name("baseline.json"))
SPOT_CHECKS = 4  # kernels that are compiled whatever the baseline says of them

# Bytes over the minimum at B = 4, T = 4096, 16 heads of width 128: forward, backward.
LIMITS = {
    "additive": (1.1, 3.0),
    "delta": (1.6, 3.0),
    "channel additive": (2.4, 3.0),
    "channel delta": (2.4, 3.0),
    "channel general": (2.4, 3.0),
    "read before write": (2.4, 3.0),
    "diagonal scan": (1.05, 1.25),
    "complex diagonal scan": (1.05, 1.25),
    "selective scan": (1.7, 3.0),
}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Everything, or with another Triton than the baseline's, where nothing is known, a part."""
    if triton.__version__ == BASELINE.triton:
        return compiled_rows(CASES, WIDTHS, CHECKED, BASELINE.rows)
    return compiled_rows(LIMITS, [WIDTH], ["sm_90", "gfx942"])


@pytest.mark.slow
def test_every_kernel_stays_within_its_means(rows: list[Row]) -> None:
    """No spills (but on sm_100), shared memory within the limit, tensor cores in every product."""
    assert sum(len(row.compiled) for row in rows) >= len(rows)
    problems = [problem for row in rows for problem in row.problems()]
    assert not problems, "\n".join(problems)


@pytest.mark.slow
def test_nothing_got_worse(rows: list[Row]) -> None:
    if triton.__version__ != BASELINE.triton:
        pytest.skip(f"the baseline is from Triton {BASELINE.triton}, this is {triton.__version__}")
    worse = regressions(rows, BASELINE.rows)
    assert not worse, "\n".join(worse)


@pytest.mark.slow
def test_the_baseline_tells_the_truth(rows: list[Row]) -> None:
    """A few kernels, others after each change, compiled again."""
    if triton.__version__ != BASELINE.triton:
        pytest.skip(f"the baseline is from Triton {BASELINE.triton}, this is {triton.__version__}")
    by_key = {one.key: (row, one) for row in rows for one in row.compiled}
    for key in sorted(by_key)[:SPOT_CHECKS]:
        row, said = by_key[key]
        case, _ = row.case.rsplit(" ", 1)
        again = compiled_rows([case], [row.width], [row.architecture], without(rows, key))
        found = [one.resources for r in again for one in r.compiled if one.key == key]
        assert found and all(r == said.resources for r in found), (row.name, said, found)


def without(rows: list[Row], key: str) -> list[Row]:
    """The same figures but for one kernel."""
    return [Row(r.case, r.width, r.architecture, [c for c in r.compiled if c.key != key]) for r in rows]


def within(row: Row) -> bool:
    """Whether a row's bytes are within its limit."""
    case, direction = row.case.rsplit(" ", 1)
    return row.ratio is not None and 1 <= row.ratio <= LIMITS[case][direction == "backward"]


def test_traffic_of_the_baseline_is_within_limits() -> None:
    counted = [row for row in BASELINE.rows if row.width == WIDTH and row.case.rsplit(" ", 1)[0] in LIMITS]
    assert len(counted) == 2 * len(LIMITS) * len(CHECKED)
    for row in counted:
        assert within(row), (row.name, row.ratio, row.moved)


@pytest.mark.slow
def test_traffic_stays_near_the_minimum(rows: list[Row]) -> None:
    """Counted again for one architecture."""
    limited = [r for r in rows if r.width == WIDTH and r.case.rsplit(" ", 1)[0] in LIMITS]
    counted = [row for row in limited if row.architecture == "sm_90"]
    assert len(counted) == 2 * len(LIMITS)
    count_traffic(counted)
    for row in counted:
        assert within(row), (row.name, row.ratio, row.moved)
    if triton.__version__ == BASELINE.triton:
        worse = regressions(counted, BASELINE.rows)
        assert not worse, "\n".join(worse)
