"""``linrec cache``."""

from __future__ import annotations


def command() -> None:
    """Print what decoding keeps: cache floats and parameters of attention variants, counted on the layers."""
    from rich.table import Table

    from linrec.evals.pages.cache_table import HEADERS, cells
    from linrec.terminal import show

    table = Table(*HEADERS, title="width 2048, 12 layers, SwiGLU 5456")
    for row in cells():
        table.add_row(*row)
    show(table)
