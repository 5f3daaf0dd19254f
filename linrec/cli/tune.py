"""``linrec tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linrec.cli.options import names, numbers

Rules = Annotated[str, typer.Option(help="comma-separated; the default: one of each kind")]
OutFile = Annotated[
    Path, typer.Option(help="the file to write; rows of the file that LINREC_LAUNCHES names are kept")
]


def command(
    rules: Rules = "lightning,gla,gated_delta_net,kimi_delta_attention,generalized_delta",
    widths: Annotated[str, typer.Option(help="K = V, comma-separated")] = "64,128,256",
    dtypes: Annotated[
        str, typer.Option(help="of bfloat16, float16 and float32, comma-separated")
    ] = "bfloat16",
    chunks: Annotated[bool, typer.Option("--chunks", help="choose the length of chunks as well")] = False,
    out: OutFile = Path("launches.json"),
) -> None:
    """Time launch configurations of the matrix kernels on this GPU, results checked, and write the fastest to a file.

    LINREC_LAUNCHES=FILE makes the kernels use them. Every candidate is compiled: minutes for each rule and width.
    """
    from linrec.evals.kernels.tune_gpu import tune_command
    from linrec.terminal import console

    sizes = numbers("--widths", widths)
    tune_command(names(rules), sizes, names(dtypes), chunks, out)
    console().print(f"wrote {out}")
