"""The corpora: the same documents and the same split every time, nothing lost, nothing in both parts."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from linrec import models
from linrec.errors import ConfigError
from linrec.models.corpus import split, token_stream


def test_standard_library() -> None:
    corpus = models.standard_library()
    paths = [d.path for d in corpus.train], [d.path for d in corpus.held_out]
    assert all(p == sorted(set(p)) for p in paths)
    assert not set(paths[0]) & set(paths[1])
    everything = [*paths[0], *paths[1]]
    assert {"json/decoder.py", "collections/__init__.py", "os.py"} <= set(everything)
    assert not [p for p in everything if "/test/" in f"/{p}" or "site-packages" in p]
    assert 0.01 < len(paths[1]) / len(everything) < 0.12
    for path in paths[1]:
        assert int(hashlib.sha256(path.encode()).hexdigest(), 16) % 20 == 0


def test_files_of_the_user(tmp_path: Path) -> None:
    for n in range(60):
        (tmp_path / f"{n}.txt").write_text(f"text {n}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "é.md").write_text("naïve", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    (tmp_path / "binary").write_bytes(b"a\0b")
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / "empty").write_text("")
    corpus = models.text_files([tmp_path])
    assert corpus == models.text_files([str(tmp_path)])
    assert len(corpus.train) + len(corpus.held_out) == 61
    assert len(corpus.held_out) >= 1


def test_one_file_is_cut_between_characters(tmp_path: Path) -> None:
    text = "äöü" * 40
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    corpus = models.text_files([tmp_path / "one.txt"])
    parts = [corpus.train[0].text.decode(), corpus.held_out[0].text.decode()]
    assert "".join(parts) == text
    assert all(parts)


def test_few_documents_leave_no_side_empty() -> None:
    documents = [models.Document(name, b"x") for name in "ab"]
    corpus = split(documents)
    assert len(corpus.train) == len(corpus.held_out) == 1


@pytest.mark.parametrize("name", ["nothing-here", "."])
def test_no_text(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        models.text_files([tmp_path / name])
    with pytest.raises(ConfigError, match="expected"):
        models.standard_library(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"na\xefve", "expected UTF-8 text .*position 2"),
        ("cut \u20ac".encode()[:-1], "expected UTF-8 text .*position 4"),
        (b"a\0b", "expected UTF-8 text .*zero byte at position 1"),
    ],
)
def test_a_file_of_its_own_name_that_is_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "good.txt").write_text("text " * 100)
    (tmp_path / "odd.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"odd\.txt: {message}"):
        models.text_files([tmp_path / "good.txt", tmp_path / "odd.txt"])
    assert {d.path.partition("#")[0] for part in models.text_files([tmp_path]) for d in part} == {"good.txt"}


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "mine.txt").write_text("text")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    for given in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ConfigError, match=r"mine\.txt: could not be read \(Permission denied\)"):
            models.text_files([given])
    for name in ("n" * 5000, "a\0b"):
        with pytest.raises(ConfigError, match="found no such path"):
            models.text_files([tmp_path / name])


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.txt").write_text("text " * 100)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "folder" / "closed").mkdir(parents=True)
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "a.bin").write_bytes(b"\xff")
    listed = os.scandir

    def scan(path: str) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(ConfigError) as raised:
        models.text_files(
            tmp_path / name for name in ("good.txt", "empty.txt", "gone.txt", "folder", "bytes")
        )
    empty, gone, closed, none = str(raised.value).removeprefix(str(tmp_path)).split(f"; {tmp_path}")
    assert empty == "/empty.txt: expected text, found an empty file"
    assert gone == "/gone.txt: expected a file or folder of text, found no such path"
    assert closed == "/folder/closed: could not be read (Permission denied)"
    assert (
        none.startswith("/bytes: expected UTF-8 text in this folder, found none; the first of 1 files: ")
        and "a.bin" in none
    )


def test_names_in_another_encoding(tmp_path: Path) -> None:
    for name in (b"na\xefve.txt", b"plain.txt"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_text("text")
    corpus = models.text_files([tmp_path])
    assert len(corpus.train) == len(corpus.held_out) == 1


def test_bytes_are_tokens() -> None:
    tokenizer = models.ByteTokenizer()
    ids = tokenizer.encode("naïve 🙂")
    assert tokenizer.decode([*ids, tokenizer.eos_id]) == "naïve 🙂"
    assert tokenizer.decode(ids[:-1]) == "naïve �"
    stream = token_stream([models.Document("a", b"xy"), models.Document("b", b"\xff")])
    assert stream.tolist() == [256, 120, 121, 256, 255, 256]
