"""The kernel report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

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


def resources_table(rows: Sequence[Row]) -> Table:
    """A line for each kernel: what it needs of a multiprocessor, and which tensor-core instructions it has."""
    table = Table(*RESOURCES, "tensor cores", title="resources, bfloat16")
    for row in rows:
        for one in row.compiled:
            r = one.resources
            tensor = Text(" ".join(f"{name} {count}" for name, count in r.tensor.items()))
            if problems := r.problems():
                tensor = Text("; ".join(problems), style="red")
            head = (row.case, row.width, row.architecture, one.kernel, one.config)
            cells = (r.registers, r.spills, f"{r.shared / 1024:.1f}", f"{r.warps} ({r.limiter})")
            table.add_row(*map(str, (*head, *cells)), tensor)
    return table


def traffic_table(rows: Sequence[Row]) -> Table:
    """A line for each call: the bytes that its launches and torch operations move, over the minimum, by GPU."""
    counted = [row for row in rows if row.ratio is not None]
    gpus = list(dict.fromkeys(row.architecture for row in counted))
    table = Table("case", "launches", "torch ops", "minimum MB", "GFLOP", "over minimum", "FLOP/B", *gpus)
    table.title = "right: bytes over the minimum (every input read once, every output written once), bfloat16"
    table.caption = "FLOPs of products; their minimum: token by token, a backward twice that"
    by_name = {(row.case, row.width, row.architecture): row for row in counted}
    for case, width in dict.fromkeys((row.case, row.width) for row in counted):
        first = next(row for row in counted if (row.case, row.width) == (case, width))
        flops, moved = sum(m.flops for m in first.moved), sum(m.bytes for m in first.moved)
        launches = len(first.compiled)
        ratios = [by_name[case, width, gpu].ratio if (case, width, gpu) in by_name else None for gpu in gpus]
        table.add_row(
            f"{case}, {width}",
            str(launches),
            str(len(first.moved) - launches),
            f"{first.minimum / 1e6:.0f}",
            f"{flops / 1e9:.1f}",
            f"{flops / first.least_flops:.2f}" if first.least_flops else "",
            f"{flops / moved:.0f}",
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        )
    return table
