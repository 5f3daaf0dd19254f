"""Records as JSON lines: none is lost to what stands inside it, to a crash or to another process; damage is named."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from linrec.errors import FileError, RecordError
from linrec.evals import records
from linrec.evals.records import append_record, read_records
from linrec.evals.resume import run_missing
from tests.crashes import fork, killed_everywhere, on_a_full_disk, wait

# What str.splitlines takes for an end of line, and what text mode would translate.
ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
LINES: list[dict[str, Any]] = [
    {"id": "a", "text": f"ä{ENDS}"},
    {"id": "b", "text": "é\u2028€"},
    {"id": "c", "loss": [1.5, None]},
]


def utf8_lines(found: list[Any]) -> bytes:
    """As other programs write them: the characters themselves, not escaped."""
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found).encode()


def perform(part: str, bar: Progress) -> dict[str, Any]:
    return {"text": part}


def run(path: Path, *keys: str) -> list[str]:
    planned = {key: f"part {key}" for key in keys}
    return [record["id"] for record in run_missing(path, planned, perform, "test", shown=False)]


def test_characters_that_end_lines_elsewhere(tmp_path: Path) -> None:
    for line in LINES:
        append_record(tmp_path / "own", line)
    assert read_records(tmp_path / "own") == LINES
    assert (tmp_path / "own").read_bytes().isascii()
    assert (tmp_path / "own").read_text().splitlines() == (tmp_path / "own").read_text().split("\n")[:-1]
    (tmp_path / "other").write_bytes(utf8_lines(LINES))
    assert read_records(tmp_path / "other") == LINES
    assert run(tmp_path / "other", "a", "b", "c", "d") == ["a", "b", "c", "d"]
    assert read_records(tmp_path / "other")[:3] == LINES


def test_cut_anywhere_the_whole_lines_remain_and_the_rest_is_done_again(tmp_path: Path) -> None:
    path, whole = tmp_path / "cut", utf8_lines(LINES)
    ends = [
        n for n in range(len(whole) + 1) if n == 0 or whole[n - 1 : n] == b"\n" or whole[n : n + 1] == b"\n"
    ]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        kept = [
            json.loads(line) for line in whole[: max(n for n in ends if n <= length)].split(b"\n") if line
        ]
        assert read_records(path) == kept
        append_record(path, {"id": "d"})
        assert read_records(path) == [*kept, {"id": "d"}]
        assert len(path.read_bytes().split(b"\n")) == len(kept) + 2  # nothing of the cut line is left


def test_numbers_that_json_has_not_and_half_characters(tmp_path: Path) -> None:
    record = {"id": "a", "loss": math.nan, "best": math.inf, "command": "linrec --out odd\udcff"}
    append_record(tmp_path / "r", record)
    (again,) = read_records(tmp_path / "r")
    assert math.isnan(again.pop("loss")) and again == {n: v for n, v in record.items() if n != "loss"}


def test_empty_and_blank(tmp_path: Path) -> None:
    assert read_records(tmp_path / "nothing") == []
    for content in (b"", b"\n", b"\r\n  \n", b"\0\0\0", b'{"id": "a'):
        (tmp_path / "r").write_bytes(content)
        assert read_records(tmp_path / "r") == []
    (tmp_path / "r").write_bytes(b'\n{"id": "a"}\r\n\n')
    assert read_records(tmp_path / "r") == [{"id": "a"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1]", "line 2: expected a JSON object, got list"),
        (b"3", "line 2: expected a JSON object, got int"),
        (b"null", "line 2: expected a JSON object, got NoneType"),
        (b'"id"', "line 2: expected a JSON object, got str"),
        (b'{"id": "b"', "line 2: expected JSON"),
        (b'{"id": "b"}}', "line 2: expected JSON"),
        (b"\xff\xfe", "line 2: expected JSON.*decode"),
        (b"[" * 10**5, "line 2: expected JSON.*RecursionError"),
        (b'{"id": ' + b"9" * 5000 + b"}", "line 2: expected JSON.*digits"),
        (b'{"id": "b", "id": "c"}', "line 2: expected JSON.*'id' twice"),
        (b"\0\0\0", "line 2: expected JSON"),
    ],
)
def test_damage_is_named_and_nothing_is_written(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + line + b'\n{"id": "c"}\n')
    before = path.read_bytes()
    with pytest.raises(RecordError, match=rf"r\.jsonl, {message}"):
        run(path, "a", "b")
    assert path.read_bytes() == before


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("", "loop"):
        with pytest.raises(RecordError, match="expected a file"):
            run(tmp_path / name, "a")
        with pytest.raises(FileError, match="could not be written"):
            append_record(tmp_path / name, {"id": "a"})


def test_lines_of_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "r"
    others = [{}, {"id": 3}, {"id": [1]}, {"id": "x"}, {"id": "a", "turn": 1}, {"id": "a", "turn": 2}]
    path.write_bytes(utf8_lines(others))
    found = run_missing(path, {"a": "", "b": "part b"}, perform, "test", shown=False)
    assert [(r["id"], r.get("turn")) for r in found] == [("a", 1), ("b", None)]
    assert read_records(path)[: len(others)] == others


def test_killed_anywhere_while_appending(tmp_path: Path) -> None:
    path, new = tmp_path / "r", {"id": "new", "text": "x" * 100}
    before = LINES[:2]
    path.write_bytes(utf8_lines(before) + b'{"id": "cut')
    seen = set()
    for _ in killed_everywhere(lambda: append_record(path, new), [records]):
        found = read_records(path)
        assert found in (before, [*before, new])
        seen.add(len(found))
        path.write_bytes(utf8_lines(before) + b'{"id": "cut')
    assert seen == {2, 3}
    assert os.listdir(tmp_path) == ["r"]


def test_a_full_disk_takes_no_half_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_bytes(utf8_lines(LINES))
    before = path.read_bytes()

    def append() -> None:
        with pytest.raises(FileError, match="could not be written"):
            append_record(path, {"id": "d", "text": "x" * 1000})

    assert on_a_full_disk(append, room=len(before) + 100) == 0
    assert path.read_bytes() == before
    run(path, "d")
    assert read_records(path)[:3] == LINES


def test_two_processes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r"

    def append(name: str) -> None:
        for n in range(100):
            append_record(path, {"id": f"{name}{n}", "text": name * 5000})

    children = [fork(lambda name=name: append(name)) for name in "xyz"]  # type: ignore[misc]
    while not all(os.waitpid(child, os.WNOHANG)[0] for child in children[:1]):
        if path.exists():
            read_records(path)  # a reader in between sees whole lines
    assert [wait(child) for child in children[1:]] == [0, 0]
    assert sorted(r["id"] for r in read_records(path)) == sorted(f"{c}{n}" for c in "xyz" for n in range(100))


def test_what_was_done_before_an_interruption_is_kept(tmp_path: Path) -> None:
    done: list[str] = []

    def interrupted(part: str, bar: Progress) -> dict[str, Any]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(part)
        return {"text": part}

    planned = {key: key for key in "abcd"}
    with pytest.raises(KeyboardInterrupt):
        run_missing(tmp_path / "r", planned, interrupted, "test", shown=False)
    assert [r["id"] for r in read_records(tmp_path / "r")] == ["a", "b"]
    assert run(tmp_path / "r", *planned) == ["a", "b", "c", "d"]
