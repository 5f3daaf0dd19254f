"""Writing files: killed anywhere, on a full disk, or two at once, and what is left behind afterwards."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from linrec import files, reading
from linrec.errors import CheckpointError, ConfigError, FileError
from linrec.files import write_atomically, write_tensors, write_text, write_together
from linrec.reading import open_tensors, parse_json, read_bytes
from tests.crashes import fork, killed_everywhere, on_a_full_disk, wait

OLD, NEW = "old" * 1000, "new" * 1000


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_killed_anywhere_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    seen = set()
    write_text(path, OLD)
    for _ in killed_everywhere(lambda: write_text(path, NEW), [files]):
        seen.add(path.read_text())
        if path.read_text() == NEW:
            path.write_text(OLD)
    assert seen == {OLD, NEW}
    write_text(tmp_path / "another", "x")
    assert names(tmp_path) == ["a.json", "another"]  # what the killed left went with the next write


def test_killed_with_half_of_it_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_text(path, OLD)

    def half(temporary: Path) -> None:
        temporary.write_text(NEW[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    assert wait(fork(lambda: write_atomically(path, half))) == -signal.SIGKILL
    assert path.read_text() == OLD and len(names(tmp_path)) == 2
    write_text(path, NEW)
    assert path.read_text() == NEW and names(tmp_path) == ["a"]


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    write_together(tmp_path, {"small": files.text_writer("old"), "large": files.text_writer("old")})

    def both() -> None:
        new = {"small": files.text_writer("new"), "large": files.text_writer(NEW * 10)}
        with pytest.raises(FileError, match=r"large: could not be written .*File too large") as caught:
            write_together(tmp_path, new)
        assert caught.value.errno == errno.EFBIG

    assert on_a_full_disk(both, room=4096) == 0
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["old", "old"]

    def tensors() -> None:
        with pytest.raises(FileError, match="could not be written"):
            write_tensors(tmp_path / "large", {"x": torch.zeros(5000)}, {})

    assert on_a_full_disk(tensors, room=4096) == 0
    assert names(tmp_path) == ["large", "small"] and (tmp_path / "large").read_text() == "old"


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    begun, go = os.pipe(), os.pipe()

    def slowly(temporary: Path) -> None:
        temporary.write_text("slow")
        os.write(begun[1], b"x")
        os.read(go[0], 1)

    child = fork(lambda: write_atomically(tmp_path / "slow", slowly))
    os.read(begun[0], 1)
    for n in range(3):
        write_text(tmp_path / "quick", str(n))
    assert len(names(tmp_path)) == 2
    os.write(go[1], b"x")
    assert wait(child) == 0
    assert (tmp_path / "slow").read_text() == "slow" and names(tmp_path) == ["quick", "slow"]


def test_without_locks_a_day_goes_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    for name, age in (("young", 60), ("old", 25 * 3600)):
        path = tmp_path / f"{files.PREFIX}{name}{files.SUFFIX}"
        path.mkdir()
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    write_text(tmp_path / "a", OLD)
    assert names(tmp_path) == [".linrec-young.tmp", "a"]


def test_threads_in_one_folder(tmp_path: Path) -> None:
    def write(content: str) -> None:
        for _ in range(20):
            write_together(tmp_path, dict.fromkeys("ab", files.text_writer(content)))

    threads = [threading.Thread(target=write, args=(c * 100,)) for c in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_usual_permissions_and_only_its_own_temporary_files(tmp_path: Path) -> None:
    (tmp_path / ".other.tmp").write_text("not ours")
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", OLD)
        write_tensors(tmp_path / "b", {"x": torch.zeros(1)}, {})
    finally:
        os.umask(before)
    assert names(tmp_path) == [".other.tmp", "a", "b"]
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"} == {0o640}


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder", tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(FileError, match="could not be written"):
            write_text(path, OLD)
    assert names(tmp_path) == ["file", "folder"]


def test_an_odd_name_in_a_text_is_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "odd \udcff, usual é\n")
    assert (tmp_path / "a").read_bytes() == b"odd \\udcff, usual \xc3\xa9\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b"\xff", "can't decode"),
        (b"[" * 10**5, "RecursionError"),
        (b"9" * 5000, "digits"),
        (b'{"a": {"b": 1, "b": 2}}', "key 'b' twice"),
    ],
)
def test_what_is_no_json(text: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^where: .*{message}"):
        parse_json(text, "where", ConfigError)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("", "nothing", "loop", "pipe", "n" * 300, "a\0b"):
        with pytest.raises(CheckpointError, match="expected a file, found"):
            read_bytes(tmp_path / name, CheckpointError)


def test_read_tensors_are_not_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.ones(1000)}, {})
    with open_tensors(path, CheckpointError) as file:
        assert file.header() == {"x": ("F32", [1000])}
        x = file.tensors()["x"]
    assert torch.equal(load_file(path)["x"], x)
    path.write_bytes(b"")
    assert float(x.sum()) == 1000


def test_a_file_that_is_replaced_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_tensors(path, {"x": torch.zeros(3)}, {"turn": "0"})

    def slow(name: Path, framework: str) -> object:
        file = safe_open(name, framework=framework)
        if float(file.get_tensor("x")[0]) == 0:
            write_tensors(path, {"x": torch.ones(3)}, {"turn": "1"})
        return file

    monkeypatch.setattr(reading, "safe_open", slow)
    with open_tensors(path, CheckpointError) as file:
        assert file.metadata == {"turn": "1"} and file.tensors()["x"].tolist() == [1, 1, 1]
