"""``linrec eval``."""

from __future__ import annotations

from typing import Annotated

import typer

from linrec.cli.options import Checkpoint, Device, Metadata, ReportFile, device_named, json_object, wrote

Tasks = Annotated[str, typer.Option(help="comma-separated; the kit's own or any stock lm-eval task")]
Window = Annotated[
    int | None, typer.Option(min=2, help="score documents in half-overlapping windows of this size")
]
StateMegabytes = Annotated[
    int, typer.Option(min=0, help="megabytes of states kept for forking; over it they are computed again")
]


def command(
    checkpoint: Checkpoint,
    tasks: Tasks = "linrec_stdlib_bpb,linrec_stdlib_choice",
    limit: Annotated[int | None, typer.Option(min=1, help="documents of each task")] = None,
    out: ReportFile = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="examples before each question")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="contexts side by side")] = None,
    rolling_window: Window = None,
    max_state_mb: StateMegabytes = 1000,
    metadata: Metadata = None,
    device: Device = None,
) -> None:
    """Evaluate a checkpoint through lm-eval."""
    from linrec.evals.harness.run import evaluate
    from linrec.evals.harness.scores import results_table
    from linrec.terminal import show

    report = evaluate(
        checkpoint,
        [tasks],
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        rolling_window=rolling_window,
        max_state_bytes=max_state_mb * 10**6,
        metadata=json_object(metadata),
        device=device_named(device),
        out=out,
    )
    show(results_table(report))
    wrote(out)
