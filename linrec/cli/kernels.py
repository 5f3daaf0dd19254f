"""``linrec kernels``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linrec.errors import LinrecError

Baseline = Annotated[
    Path, typer.Option(help="compare with these figures, and compile only what changed since")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="write the figures here as well")]


def command(
    case: Annotated[list[str] | None, typer.Option(help="calls to report on; default: all")] = None,
    width: Annotated[list[int] | None, typer.Option(help="K = V; default: 128")] = None,
    arch: Annotated[list[str] | None, typer.Option(help="default: sm_80, sm_90, sm_100, gfx942")] = None,
    traffic: Annotated[bool, typer.Option(help="count bytes and FLOPs as well")] = True,
    baseline: Baseline = Path("tests/kernels/baseline.json"),
    write: Annotated[bool, typer.Option("--write", help="make these figures the baseline")] = False,
    json_out: JsonFile = None,
) -> None:
    """Compile the GPU kernels for several architectures and count what they move. Needs Triton, but no GPU."""
    from linrec.evals.kernels.command import report_on

    if problems := report_on(case, width, arch, traffic, baseline, write, json_out):
        raise LinrecError("; ".join(problems))
