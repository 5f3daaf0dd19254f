"""``linrec compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linrec.cli.options import Device, device_named


def command(
    mixers: Annotated[
        str, typer.Option(help="layers, separated by spaces: layer[+layer]:option=value,...; default: twelve")
    ] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="runs of each mixer")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="training steps of each run")] = None,
    size: Annotated[str, typer.Option(help="small (minutes a seed on a CPU) or full (for a GPU)")] = "small",
    out: Annotated[Path, typer.Option(help="folder for compare.jsonl, .png and .html")] = Path(
        "runs/compare"
    ),
    device: Device = None,
) -> None:
    """Train mixers of equal size on the same text, one table and one page; what is on file is not run again."""
    from linrec.evals.compare.run import run_compare
    from linrec.evals.compare.setting import MIXERS, make_setting
    from linrec.evals.compare.show import table
    from linrec.terminal import show

    setting = make_setting(size, steps)
    rows = run_compare(
        setting,
        out,
        mixers=mixers.split() or MIXERS,
        seeds=None if seeds is None else range(seeds),
        device=device_named(device),
    )
    show(table(rows, setting))
