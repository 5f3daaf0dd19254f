"""``linrec compare-hf``."""

from __future__ import annotations

from typing import Annotated

import typer

from linrec.cli.options import (
    Checkpoint,
    Device,
    Metadata,
    ReportFile,
    device_named,
    json_object,
    numbers,
    wrote,
)


def command(
    checkpoint: Checkpoint,
    tasks: Annotated[str, typer.Option(help="comma-separated")] = "linrec_stdlib_choice",
    shots: Annotated[str, typer.Option(help="examples before each question, comma-separated")] = "0,5",
    limit: Annotated[int, typer.Option(min=1, help="documents of each task")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="of both wrappers")] = 8,
    turns: Annotated[int, typer.Option(min=1, help="measure this often and keep the fastest")] = 1,
    metadata: Metadata = None,
    device: Device = None,
    out: ReportFile = None,
) -> None:
    """Measure the model class beside lm-eval's own Hugging Face wrapper, on the same weights."""
    from linrec.evals.harness.side_by_side import side_by_side, side_by_side_table
    from linrec.terminal import show

    report = side_by_side(
        checkpoint,
        [tasks],
        shots=numbers("--shots", shots),
        limit=limit,
        batch_size=batch_size,
        turns=turns,
        metadata=json_object(metadata),
        device=device_named(device),
        out=out,
    )
    show(side_by_side_table(report))
    wrote(out)
