"""``linrec rules``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from linrec.cli.options import device_named
from linrec.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

Explain = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="also say which backend `auto` chooses here, and which torch calls are fastest on this CPU",
    ),
]
Markdown = Annotated[bool, typer.Option("--markdown", help="the table as the README holds it")]
# Characters in which a cell is folded where a table has room: an equation, who published it, why a form is missing.
FOLDED = {"equation": 80, "citation": 60}
FORM = 12


def command(explain: Explain = False, markdown: Markdown = False) -> None:
    """Print the support table: every rule, its equation, engine, forms and state."""
    from linrec.table import support_table
    from linrec.terminal import show

    if markdown and explain:
        raise ConfigError(
            "--explain is not part of the table that --markdown prints; expected one of the two"
        )
    if markdown:
        typer.echo(support_table(), nl=False)
        return
    show(_rules(explain))
    if explain:
        show(_choices())


def _rules(explain: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    from linrec.rule import FORMS
    from linrec.table import COLUMNS, explanation, rows

    chosen = dict(explanation(device_named(None))) if explain else {}
    table = Table(show_lines=True)
    for name in (*COLUMNS, "backend=auto") if explain else COLUMNS:
        table.add_column(name, max_width=FORM if name in FORMS else FOLDED.get(name))
    for row in rows():
        more = [chosen[row[0]]] if explain else []
        table.add_row(*map(Text, [*row, *more]))
    return table


def _choices() -> Table:
    """A line a choice between torch calls."""
    from rich.table import Table

    from linrec.evals.bench.choices import choice_table

    table = Table("what", "call", title="chosen by time on this processor")
    for what, call in choice_table():
        table.add_row(what, call)
    return table
