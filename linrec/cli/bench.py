"""``linrec bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linrec.cli.options import names
from linrec.errors import ConfigError

Rounds = Annotated[
    int | None,
    typer.Option(min=2, help="times each is run, the best counts; default: 5, forms and curves fewer"),
]


def command(
    cases: Annotated[str, typer.Option(help="comma-separated; default: all but transformers")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="small shapes, in seconds")] = False,
    rounds: Rounds = None,
    threads: Annotated[int | None, typer.Option(min=1, help="torch threads")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for bench.json and the pictures")] = None,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: the kernels beside fla-core's, cases are rules")
    ] = "cpu",
) -> None:
    """Time the rules against transformers and softmax attention, after checking that the results agree."""
    if device == "cpu":
        _on_cpu(names(cases), quick, rounds, threads, out)
    elif device != "cuda":
        raise ConfigError(f"--device expects cpu or cuda, got {device}")
    elif rounds is not None or threads is not None:
        raise ConfigError(f"--rounds and --threads are of a CPU; expected neither beside --device {device}")
    else:
        _on_gpu(names(cases), quick, out)


def _on_cpu(
    cases: tuple[str, ...], quick: bool, rounds: int | None, threads: int | None, out: Path | None
) -> None:
    from linrec.evals.bench.forms import form_table
    from linrec.evals.bench.run import remarks, run_bench, table, write
    from linrec.files import check_writable
    from linrec.terminal import console, show

    if out:
        check_writable(out)
    screen = console()
    with screen.status("measuring"):
        report = run_bench(cases, quick=quick, rounds=rounds, threads=threads)
    if report["rows"]:
        show(table(report))
    if "forms" in report:
        show(form_table(report["forms"]))
    for line in remarks(report):
        screen.print(line)
    for path in write(report, out) if out else ():
        screen.print(f"wrote {path}")


def _on_gpu(rules: tuple[str, ...], quick: bool, out: Path | None) -> None:
    from linrec.evals.bench import gpu_times
    from linrec.files import check_writable
    from linrec.terminal import console, show

    if out:
        check_writable(out)
    timed = gpu_times.report(rules, quick=quick)
    show(gpu_times.table(timed))
    if out:
        console().print(f"wrote {gpu_times.write(timed, out)}")
