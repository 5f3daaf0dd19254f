"""Files of others, read without trust.

What a file holds is checked before it is used, and every way in which reading it can fail is one error of a type that
the caller names, with the file and the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from linrec.errors import LinrecError

Name = str | os.PathLike[str]


class TensorFile:
    """An open safetensors file: ``metadata``, dtypes and shapes by name from its header, then the values.

    Raises ``failure``, with file and reason, for whatever the file holds that it should not.
    """

    def __init__(self, file: Any, path: Name, failure: type[LinrecError]):
        self._file, self.path, self._failure = file, path, failure
        self.names: list[str] = list(file.keys())
        self.metadata: dict[str, str] = dict(file.metadata() or {})

    def header(self) -> dict[str, tuple[str, list[int]]]:
        """Each tensor's dtype, as safetensors writes it (``F32``), and shape; no value is read."""
        with _as_failure(self.path, self._failure):
            slices = {name: self._file.get_slice(name) for name in self.names}
            return {name: (part.get_dtype(), list(part.get_shape())) for name, part in slices.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The values, in memory of their own: the file may be written over while they are in use."""
        with _as_failure(self.path, self._failure):
            return {name: self._file.get_tensor(name).clone() for name in self.names}


@contextlib.contextmanager
def open_tensors(path: Name, failure: type[LinrecError]) -> Iterator[TensorFile]:
    """A safetensors file; ``failure`` where there is none, or it is truncated or damaged.

    safetensors opens a file twice, for its header and for its values; if another has taken its place in between,
    that is done again.
    """
    _check_file(path, failure)
    with contextlib.ExitStack() as stack:
        with _as_failure(path, failure):
            before = None
            while before != (before := _identity(path)):
                stack.close()
                opened = TensorFile(stack.enter_context(safe_open(path, framework="pt")), path, failure)
        yield opened


def _identity(path: Name) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _as_failure(path: Name, failure: type[LinrecError]) -> Iterator[None]:
    try:
        yield
    # What safetensors and torch raise about a file that lies is written down nowhere: any of a dozen types.
    except Exception as error:
        said = "not a safetensors file: truncated, damaged or not safetensors at all"
        if isinstance(error, OSError | MemoryError):
            said = "could not be read"
        raise failure(f"{path}: {said} ({reason(error)})") from error


def read_bytes(path: Name, failure: type[LinrecError]) -> bytes:
    """A file's content; ``failure`` where there is no file or it cannot be read."""
    _check_file(path, failure)
    return _content(path, failure)


def _content(path: Name, failure: type[LinrecError]) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, MemoryError) as error:
        raise failure(f"{path}: {_unreadable(error)}") from error


def read_text(path: Name, failure: type[LinrecError]) -> bytes:
    """Somebody's text, as its bytes, from a file or a pipe (``/dev/stdin``); ``failure`` as :func:`check_text` has it,
    and where there is no file or it cannot be read."""
    check_path(path, failure)
    if os.path.isdir(path):
        raise failure(f"{path}: expected a file, found a folder")
    text = _content(path, failure)
    check_text(text, path, failure)
    return text


def check_text(text: bytes, path: Name, failure: type[LinrecError]) -> None:
    """``failure`` for what is empty, or not text in UTF-8."""
    if not text:
        raise failure(f"{path}: expected text, found an empty file")
    try:
        text.decode("utf-8")
        if b"\0" in text:
            raise UnicodeError(f"a zero byte at position {text.index(0)}")
    except UnicodeError as error:
        raise failure(f"{path}: expected UTF-8 text ({error})") from error


def read_json(path: Name, failure: type[LinrecError]) -> Any:
    """The value of a JSON file; ``failure`` where :func:`read_bytes` or :func:`parse_json` has one."""
    return parse_json(read_bytes(path, failure), str(path), failure)


def parse_json(text: bytes | str, where: str, failure: type[LinrecError]) -> Any:
    """The value of a JSON text in UTF-8; ``failure`` if it is none, or if an object has a key twice."""
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError, MemoryError) as error:
        raise failure(f"{where}: expected JSON, could not read it ({reason(error)})") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {name[:100]!r} twice")
        found[name] = value
    return found


def _check_file(path: Name, failure: type[LinrecError]) -> None:
    check_path(path, failure)
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "another kind of file"
        raise failure(f"{path}: expected a file, found {found}")


def check_path(
    path: Name, failure: type[LinrecError], expected: str = "a file", nothing: str = "no such file"
) -> None:
    """``failure`` where there is no such path, or one may not look at it."""
    try:
        os.stat(path)
    except PermissionError as error:
        raise failure(f"{path}: {_unreadable(error)}") from error
    except (OSError, ValueError) as error:
        raise failure(f"{path}: expected {expected}, found {nothing}") from error


def _unreadable(error: BaseException) -> str:
    return f"could not be read ({reason(error)})"


def reason(error: BaseException) -> str:
    """What an error says, in one short line: of the system's errors their own words, of others the type as well."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
