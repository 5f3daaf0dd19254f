"""The kernel report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from linrec.evals.kernels.report import Row

RESOURCES = (
    "case",
    "width",
    "GPU",
    "kernel",
    "configuration",
    "registers",
    "spills B",
    "shared KiB",
    "warps",
)


def resources_table(rows: Iterable[Row]) -> Table:
    """A line for each kernel: what it needs of a multiprocessor, and which tensor-core instructions it has."""
    table = Table(*RESOURCES, "tensor cores", title="resources (bfloat16)")
    for row in rows:
        head = [row.case, str(row.width), row.architecture]
        for one in row.compiled:
            r = one.resources
            tensor = " ".join(f"{name} {count}" for name, count in r.tensor.items())
            if problems := r.problems():
                tensor = f"[red]{'; '.join(problems)}[/red]"
            cells = [r.registers, r.spills, f"{r.shared / 1024:.1f}", f"{r.warps} ({r.limiter})"]
            table.add_row(*head, one.kernel, one.config, *map(str, cells), tensor)
            head = ["", "", ""]
    return table


def traffic_table(rows: Iterable[Row]) -> Table:
    """A line for each call: bytes moved by its launches and torch operations, against the minimum."""
    table = Table(
        "case", "width", "GPU", "launches", "torch ops", "MB", "minimum", "ratio", "GFLOP", "FLOP/B"
    )
    table.title = (
        "memory traffic (bfloat16; every input read once and every output written once is the minimum)"
    )
    for row in rows:
        if row.ratio is None:
            continue
        moved, flops = sum(m.bytes for m in row.moved), sum(m.flops for m in row.moved)
        launches = len(row.compiled)
        table.add_row(
            row.case,
            str(row.width),
            row.architecture,
            str(launches),
            str(len(row.moved) - launches),
            f"{moved / 1e6:.0f}",
            f"{row.minimum / 1e6:.0f}",
            f"{row.ratio:.2f}",
            f"{flops / 1e9:.1f}",
            f"{flops / moved:.0f}",
        )
    return table
