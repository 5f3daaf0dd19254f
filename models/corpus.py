"""Text to train on: the running Python's standard library, or the user's own files, as bytes.

What is held out depends on a document's path alone, so the split is the same in every process and stays the
same when files come or go.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from linrec.errors import ConfigError
from linrec.models.tokenizer import ByteTokenizer, Tokenizer
from linrec.reading import check_path, check_text, read_bytes, read_text, reason

HELD_OUT_ONE_IN = 20
# Test suites are most of the lines and little of the style; the others are not the library's own code.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


class Document(NamedTuple):
    """One file: its path relative to the corpus, with forward slashes, and its bytes (valid UTF-8)."""

    path: str
    text: bytes


class Corpus(NamedTuple):
    """Documents to train on and documents held out, each sorted by path."""

    train: list[Document]
    held_out: list[Document]


def standard_library(root: str | os.PathLike[str] | None = None, one_in: int = HELD_OUT_ONE_IN) -> Corpus:
    """The ``.py`` files of the running Python's standard library without its test suites.

    Raises ConfigError where this Python has no source files (a zipped or frozen one).
    """
    base = Path(root if root is not None else sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(base.rglob("*.py")):
        with contextlib.suppress(ConfigError):
            if _wanted(path, base):
                documents.append(Document(path.relative_to(base).as_posix(), read_text(path, ConfigError)))
    if not documents:
        raise ConfigError(f"{base}: expected the .py files of the standard library, found none")
    return split(documents, one_in)


def text_files(paths: Iterable[str | os.PathLike[str]], one_in: int = HELD_OUT_ONE_IN) -> Corpus:
    """The user's files; folders are searched, without hidden files and those that are not UTF-8 text.

    Raises ConfigError, with each path and its reason, for what does not exist or cannot be read, for a file given by
    its own name that is empty or not UTF-8 text, and for a folder without any text.
    """
    documents: dict[str, Document] = {}
    problems = []
    for path in map(Path, paths):
        try:
            check_path(path, ConfigError, "a file or folder of text", "no such path")
            found = _folder(path) if path.is_dir() else {path: _document(path)}
        except ConfigError as error:
            problems.append(str(error))
            continue
        for file, document in found.items():
            name = document.path if document.path not in documents else file.resolve().as_posix()
            documents[name] = Document(name, document.text)
    if problems or not documents:
        raise ConfigError("; ".join(problems) or "expected at least one file or folder of text, got none")
    return split(sorted(documents.values()), one_in)


def _document(path: Path) -> Document:
    return Document(path.name, read_text(path, ConfigError))


def _folder(folder: Path) -> dict[Path, Document]:
    """The texts in a folder and those below it, in the order of their paths; ConfigError where there is none."""
    found, others = {}, []
    for path in sorted(_visible_files(folder)):
        text = read_bytes(path, ConfigError)
        try:
            check_text(text, path, ConfigError)
        except ConfigError as error:
            others.append(str(error))
        else:
            found[path] = Document(path.relative_to(folder).as_posix(), text)
    if not found:
        reasons = f"; the first of {len(others)} files: {others[0]}" if others else ""
        raise ConfigError(f"{folder}: expected UTF-8 text in this folder, found none{reasons}")
    return found


def _visible_files(folder: Path) -> Iterator[Path]:
    """Files whose path has no hidden part; ConfigError for a folder that cannot be listed."""

    def refuse(error: OSError) -> None:
        raise ConfigError(f"{error.filename}: could not be read ({reason(error)})") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [Path(parent, name) for name in names if not name.startswith(".")]
        yield from (path for path in files if path.is_file())


def split(documents: Sequence[Document], one_in: int = HELD_OUT_ONE_IN) -> Corpus:
    """Hold out the documents whose path hashes to 0 modulo ``one_in``.

    Few documents may leave one side empty: then the document of the smallest hash is held out, and of a
    single document its last tenth.
    """
    if one_in < 2:
        raise ConfigError(f"one_in: expected an integer >= 2, got {one_in}")
    held_out = [d for d in documents if path_hash(d.path) % one_in == 0]
    if not held_out or len(held_out) == len(documents):
        held_out = [min(documents, key=lambda d: path_hash(d.path))]
    if len(documents) == 1:
        return _split_one(documents[0])
    chosen = {d.path for d in held_out}
    return Corpus([d for d in documents if d.path not in chosen], held_out)


def path_hash(path: str) -> int:
    """sha256 of the path as a number; a name in another encoding counts by its bytes."""
    return int.from_bytes(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest(), "big")


def token_stream(documents: Iterable[Document], tokenizer: Tokenizer | None = None) -> Tensor:
    """All documents in one row of ids ``[tokens]`` (int16 or int32, to save memory), by default their bytes.

    Around each stand the ids that start and end one, where the tokenizer has them; where these are the same, one.
    """
    tokenizer = tokenizer or ByteTokenizer()
    dtype = torch.int16 if tokenizer.vocab_size <= torch.iinfo(torch.int16).max else torch.int32
    end, last, pieces = min(tokenizer.ends, default=None), None, []
    for document in documents:
        first = [] if tokenizer.start in (None, last) else [tokenizer.start]
        ends = [] if end is None else [end]
        pieces += [torch.tensor(first), text_ids(document.text, tokenizer), torch.tensor(ends)]
        last = end
    return torch.cat([piece.to(dtype) for piece in pieces]) if pieces else torch.empty(0, dtype=dtype)


def text_ids(text: bytes, tokenizer: Tokenizer) -> Tensor:
    """The ids ``[tokens]`` of a text in UTF-8; only of whole characters, unless they are its bytes."""
    if isinstance(tokenizer, ByteTokenizer):
        return (
            torch.frombuffer(bytearray(text), dtype=torch.uint8)
            if text
            else torch.empty(0, dtype=torch.uint8)
        )
    return torch.tensor(tokenizer.encode(text.decode("utf-8", "ignore")), dtype=torch.int32)


def _wanted(path: Path, base: Path) -> bool:
    folders = path.relative_to(base).parts[:-1]
    generated = path.name.startswith("_sysconfigdata")  # build paths of this machine
    return not generated and not SKIPPED_FOLDERS.intersection(folders)


def _split_one(document: Document) -> Corpus:
    text = document.text
    cut = text.rfind(b"\n", 0, len(text) * 9 // 10) + 1 or len(text) * 9 // 10
    while 0 < cut < len(text) and text[cut] & 0xC0 == 0x80:  # not inside a character
        cut += 1
    if not 0 < cut < len(text):
        raise ConfigError(f"{document.path}: expected enough text to hold some out, got {len(text)} bytes")
    return Corpus([Document(document.path, text[:cut])], [Document(document.path + "#end", text[cut:])])
