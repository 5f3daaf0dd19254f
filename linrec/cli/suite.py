"""``linrec suite``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linrec.cli.options import Device, device_named

Name = Annotated[
    str,
    typer.Argument(
        help="mqar, parity, modular, groups, mad, selective_copy or induction", show_default=False
    ),
]
Rules = Annotated[
    list[str] | None,
    typer.Option(help="a layer with options, e.g. delta_net:allow_neg_eigval=true,conv_size=0; repeatable"),
]


def command(
    name: Name,
    size: Annotated[
        str, typer.Option(help="small (minutes on two cores) or full (the papers' lengths)")
    ] = "small",
    seeds: Annotated[int | None, typer.Option(min=1, help="runs of each candidate")] = None,
    rule: Rules = None,
    out: Annotated[Path, typer.Option(help="folder for NAME.jsonl and NAME.png")] = Path("runs/suites"),
    device: Device = None,
) -> None:
    """Train rules side by side on a synthetic task; what is on file in --out is not run again."""
    from linrec.evals.suites.runner import make_suite, run_suite, with_rules

    chosen = make_suite(name, size)
    if rule:
        chosen = with_rules(chosen, rule)
    run_suite(chosen, out, seeds=None if seeds is None else range(seeds), device=device_named(device))
