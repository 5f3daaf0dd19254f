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
        help="also say which algorithm computes each form here, and why; and which torch calls are fastest",
    ),
]
Names = Annotated[list[str] | None, typer.Argument(help="of these rules only", show_default=False)]
Markdown = Annotated[bool, typer.Option("--markdown", help="the table as the README holds it")]
# Characters in which a cell is folded where a table has room: an equation, who published it, why a form is missing.
FOLDED = {"equation": 80, "citation": 60}
FORM = 12


def command(names: Names = None, explain: Explain = False, markdown: Markdown = False) -> None:
    """Print the support table: every rule, its equation, engine, forms and state."""
    from linrec.table import support_table
    from linrec.terminal import show

    if markdown and (explain or names):
        other = "--explain" if explain else "a rule's name"
        raise ConfigError(f"{other} is not part of the table that --markdown prints; expected one of the two")
    if markdown:
        typer.echo(support_table(), nl=False)
        return
    show(_rules(names or []))
    if explain:
        show(_algorithms(names or []))
        show(_choices())


def _rules(names: list[str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from linrec.rule import FORMS
    from linrec.table import COLUMNS, rows

    table = Table(show_lines=True)
    for name in COLUMNS:
        table.add_column(name, max_width=FORM if name in FORMS else FOLDED.get(name))
    for row in rows(names):
        table.add_row(*map(Text, row))
    return table


def _algorithms(names: list[str]) -> Table:
    """A line a form of a rule: what computes it on this machine."""
    from rich.table import Table
    from rich.text import Text

    from linrec.table import explanation

    device = device_named(None)
    table = Table(title=f"what computes a call on {device}, and why")
    for name in ("rule", "call", "algorithm", "because"):
        table.add_column(name, max_width=FOLDED["equation"] if name == "because" else None)
    for row in explanation(device, names):
        table.add_row(*map(Text, row))
    return table


def _choices() -> Table:
    """A line a choice between torch calls."""
    from rich.table import Table

    from linrec.evals.bench.choices import choice_table

    table = Table("what", "call", title="chosen by time on this processor")
    for what, call in choice_table():
        table.add_row(what, call)
    return table
