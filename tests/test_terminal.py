"""Tables are tables where a terminal has room for them, and otherwise a whole line a row."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys
import threading

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from linrec import terminal
from linrec.cli.rules import command
from linrec.rule import RULES
from linrec.table import COLUMNS, rows
from tests.pages import ROOT

WORDS = "a cell of several words, longer than a narrow terminal is wide, with two  spaces"


def table() -> Table:
    made = Table("name", "what it\nsays", title="all of them", caption="[B, T]")
    made.add_row("one", WORDS)
    made.add_row("two [red]", Text("in\ttwo\nlines"))
    made.add_row("three", "")
    return made


def shown(width: int | None) -> str:
    """What :func:`terminal.show` writes to a terminal of this width; None is a pipe."""
    file = io.StringIO()
    to = Console(file=file, force_terminal=width is not None, width=width, markup=False, color_system=None)
    terminal.show(table(), to)
    return file.getvalue()


LINES = [
    "# all of them",
    "name\twhat it says",
    f"one\t{WORDS}",
    "two [red]\tin two lines",
    "three\t",
    "# [B, T]",
]


@pytest.mark.parametrize("width", [None, 20, terminal.width(table()) - 1])
def test_a_line_a_row_where_there_is_no_room(width: int | None) -> None:
    assert shown(width).splitlines() == LINES


def test_a_table_where_there_is_room() -> None:
    width = terminal.width(table())
    text = shown(width)
    assert max(map(len, text.splitlines())) == width
    assert text.count(WORDS) == 1 and "two [red]" in text and "┃" in text and "\t" not in text


def test_lines_are_neither_broken_nor_marked_up(capsys: pytest.CaptureFixture[str]) -> None:
    said = f"wrote /somewhere/[red]/{'long/' * 60}file"
    terminal.console().print(said)
    assert capsys.readouterr().out == said + "\n"


def through_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """What ``linrec rules`` writes to a real terminal of this width."""
    above, below = pty.openpty()
    text = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other side was closed
            while piece := os.read(above, 1 << 16):
                text.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as patch, os.fdopen(below, "w", encoding="utf-8") as screen:
        patch.setattr(sys, "stdout", screen)
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm")
        command()
    reader.join()
    os.close(above)
    return text.decode().replace("\r\n", "\n")


def test_rules_are_a_line_each_in_a_narrow_terminal_and_a_table_in_a_wide_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = through_terminal(80, monkeypatch).splitlines()
    assert [line.split("\t") for line in lines] == [list(COLUMNS), *map(list, rows())]
    assert len(lines) == 1 + len(RULES)
    wide = through_terminal(320, monkeypatch)
    assert "\t" not in wide and wide.count("│") > 9 * len(RULES)


def test_only_terminal_makes_consoles() -> None:
    """So that every command prints as this file says: others show their tables, and give progress bars a console."""
    wrong = []
    for top in ("linrec", "models", "evals", "kernels"):
        for path in sorted((ROOT / top).rglob("*.py")):
            calls = re.findall(r"\b(?:Console|Progress)\(.*", path.read_text(encoding="utf-8"))
            if path != ROOT / "linrec/terminal.py":
                wrong += [f"{path}: {call}" for call in calls if "console=console()" not in call]
    assert not wrong, wrong
