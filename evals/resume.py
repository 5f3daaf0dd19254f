"""Long work in parts: each part's record is kept when it ends, and what is on file is not done again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from linrec.evals.records import append_record, read_records
from linrec.files import check_writable
from linrec.terminal import console

Part = TypeVar("Part")
Record = dict[str, Any]


def run_missing(
    path: Path,
    planned: Mapping[str, Part],
    perform: Callable[[Part, Progress], Record],
    title: str,
    shown: bool,
) -> list[Record]:
    """Perform the planned parts whose key is not in the file, in order; all planned records that are then there.

    Whether the file can be written is seen before any part is performed.

    A record is written when its part ends; lines of other keys in the file are left alone. Where two processes have
    done the same part, its first record counts. Raises RecordError for a damaged file, FileError where none can be
    written.
    """
    done = _by_key(path).keys()
    check_writable(path.parent)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console(), disable=not shown) as bar:
        total = bar.add_task(title, total=len(planned), completed=len(planned.keys() & done), note="")
        for key, part in planned.items():
            if key not in done:
                append_record(path, {"id": key, **perform(part, bar), "command": command()})
                bar.advance(total)
    return [record for key, record in _by_key(path).items() if key in planned]


def _by_key(path: Path) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for record in read_records(path):
        if isinstance(record.get("id"), str):
            found.setdefault(record["id"], record)
    return found


def command() -> str:
    """The command line as one would type it."""
    return shlex.join(["linrec", *sys.argv[1:]])
