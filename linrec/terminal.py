"""What commands print: tables for a terminal that has room for them, else lines for ``grep`` and ``cut``.

show(table)                  # a rich table
console().print("wrote ...")  # a line stays a line, however long
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ENDLESS = 100_000  # characters; a terminal in which every table has room


def console() -> Console:
    """The standard output. A line stays as it is: not broken, not cut, and brackets are no markup."""
    from rich.console import Console

    return Console(soft_wrap=True, markup=False, highlight=False)


def show(table: Table, to: Console | None = None) -> None:
    """Print a table, where it has room; in a pipe, a file or a narrower terminal a line a row (:func:`lines`)."""
    to = to or console()
    if to.is_terminal and width(table) <= to.width:
        to.print(table)
        return
    to.file.writelines(f"{line}\n" for line in lines(table))
    to.file.flush()


def width(table: Table) -> int:
    """Characters that a table takes where no cell is folded that need not be."""
    from rich.console import Console
    from rich.measure import Measurement

    wide = Console(width=ENDLESS, markup=False)
    return Measurement.get(wide, wide.options, table).maximum


def lines(table: Table) -> Iterator[str]:
    """A line a row: its cells, separated by tabs and whole.

    The names of the columns come first; a title and a caption are lines that begin with ``#``.
    """
    if table.title:
        yield f"# {_plain(table.title)}"
    if table.show_header:
        yield "\t".join(_plain(column.header) for column in table.columns)
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        yield "\t".join(map(_plain, cells))
    if table.caption:
        yield f"# {_plain(table.caption)}"


def _plain(cell: object) -> str:
    """The text of a cell, in one line and without a tab; two spaces stay two."""
    from rich.text import Text

    text = cell.plain if isinstance(cell, Text) else str(cell)
    return text.replace("\n", " ").replace("\t", " ").strip()
