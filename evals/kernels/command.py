"""``linrec kernels``: the report, printed, compared with the baseline, and written."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from linrec.errors import BackendError, UnknownNameError
from linrec.evals.kernels.targets import CHECKED, gpu
from linrec.files import check_writable
from linrec.terminal import console, show


def report_on(
    cases: Sequence[str] | None,
    widths: Sequence[int] | None,
    architectures: Sequence[str] | None,
    traffic: bool,
    baseline: Path,
    write: bool,
    json_out: Path | None,
) -> list[str]:
    """Print the tables; what is wrong or has got worse, in words. BackendError where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        raise BackendError("the kernel report needs Triton: pip install 'linrec[kernels]'")
    from linrec.evals.kernels import report
    from linrec.evals.kernels.cases import CASES, WIDTH
    from linrec.evals.kernels.table import resources_table, traffic_table

    for name in cases or ():
        if name not in CASES:
            raise UnknownNameError(f"unknown case {name!r}; one of {', '.join(CASES)}")
    for name in architectures or ():
        gpu(name)
    if json_out:
        check_writable(json_out.parent)
    screen = console()
    before = report.load(baseline)
    with screen.status("compiling"):
        rows = report.compiled_rows(cases or CASES, widths or [WIDTH], architectures or CHECKED, before.rows)
    if traffic:
        with screen.status("counting traffic"):
            report.count_traffic([row for row in rows if row.width == WIDTH])
    show(resources_table(rows))
    show(traffic_table(rows))
    if json_out:
        report.save(rows, json_out)
    if write:
        made = {row.name: row for row in [*before.rows, *rows]}
        report.save(made.values(), baseline)
        screen.print(f"wrote {baseline}")
        before.rows = list(made.values())
    worse = report.regressions(rows, before.rows) if before.rows else []
    return [problem for row in rows for problem in row.problems()] + worse
