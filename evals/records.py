"""Results as JSON lines: appended one at a time, so that an interrupted run goes on where it stopped.

A line ends with ``\\n`` and nothing else. It is written in ASCII, so that no other program takes a character inside it
for an end of line either. NaN and infinities are written as Python's json does, and read back. A crash while a line is
written leaves its beginning at the end of the file, possibly cut inside a character: that is no record, and the next
one is written over it. Anything else that is no JSON object is damage and is named, with its line.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from io import FileIO
from pathlib import Path
from typing import Any

from linrec.errors import RecordError
from linrec.files import as_file_error, flush_folder, lock, write_text
from linrec.reading import parse_json, read_bytes


def fingerprint(value: Any) -> str:
    """Twelve hex digits of a JSON value: equal settings have equal ones."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the file, none if there is no file; a last line that was cut off is left out.

    Raises RecordError, with file, line and reason, for a line that is no JSON object, and for what is no file.
    """
    if not os.path.lexists(path):
        return []
    *lines, last = read_bytes(path, RecordError).split(b"\n")
    found = [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    return [*found, *([_record(last, f"{path}, last line")] if _whole(last) else [])]


@contextmanager
def shown_from(path: Path) -> Iterator[None]:
    """Around what makes pages of a file's records: RecordError for one that lacks a field, or has another in it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RecordError(f"{path}: a record does not hold what its page shows ({what})") from error


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line and see it to the disk, over a last line that was cut off; processes take turns.

    Raises FileError where it cannot be written; the lines before stay as they are.
    """
    line = (json.dumps(record) + "\n").encode()
    with as_file_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            lock(file.fileno())
            file.seek(0)
            content = file.read()
            last = content[content.rfind(b"\n") + 1 :]
            if _whole(last):
                line = b"\n" + line
            else:
                file.truncate(len(content) - len(last))
            _write(file, line)
            os.fsync(file.fileno())
    if not content:
        flush_folder(path.parent)


def _write(file: FileIO, line: bytes) -> None:
    """All of the line or nothing of it: a full disk takes the beginning."""
    end = file.seek(0, os.SEEK_END)
    try:
        while line:
            line = line[file.write(line) :]
    except BaseException:
        file.truncate(end)
        raise


def _whole(line: bytes) -> bool:
    """Whether a line that lacks its end is a record: an object is whole where its last brace is."""
    try:
        _record(line, "")
    except RecordError:
        return False
    return True


def _record(line: bytes, where: str) -> dict[str, Any]:
    value = parse_json(line, where, RecordError)
    if not isinstance(value, dict):
        raise RecordError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def versions(*more: str) -> dict[str, str]:
    """Versions that a figure depends on; the standard library is the data, so Python's is one of them."""
    found = {"python": platform.python_version()}
    for name in ("linrec", "torch", "lm_eval", *more):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
