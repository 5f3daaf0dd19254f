"""``linrec demo``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Minutes = Annotated[
    float, typer.Option(min=0.1, help="on a slow machine, cut the steps of both models to end by about then")
]


def command(
    out: Annotated[Path, typer.Option(help="folder for the checkpoints, metrics and picture")] = Path(
        "runs/demo"
    ),
    steps: Annotated[int | None, typer.Option(min=1, help="training steps of each model")] = None,
    minutes: Minutes = 4.5,
    prompt: Annotated[
        str | None, typer.Option(help="text to continue; default: the first lines of a function")
    ] = None,
) -> None:
    """Train, stream and evaluate a small hybrid on Python's standard library, beside softmax attention."""
    # Torch's threads wait for each other by spinning; on a machine with other work that costs several times
    # what it saves. It is read when torch is loaded, and the user's own setting wins.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from linrec.evals.demo import PROMPT, STEPS, run_demo

    run_demo(out, steps=steps or STEPS, minutes=minutes, prompt=PROMPT if prompt is None else prompt)
