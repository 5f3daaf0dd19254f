"""Files that no crash can tear; :mod:`linrec.reading` reads them, and those of others.

A file is written in a temporary folder inside the folder it belongs to, flushed to the disk, and renamed to
its place; then the folder is flushed. Killed at any point, a process leaves the old content or the new. Several files
that belong together are all written before the first is renamed, so that a full disk changes none of them, and renamed
under a lock on their folder, so that two writers do not mix theirs. A rename replaces one name; whoever needs several
files to change as one makes one of them say which others it belongs to (:mod:`linrec.models.checkpoint`).

Temporary folders. A writer holds a lock on its temporary folder, which the system takes back when the process ends,
however it ends. Every writer first removes what bears a temporary name and is not locked: what a killed process left
goes with the next write, what another process is writing stays. It is a folder because libraries write under further
names beside the one they are given. Where a file system has no locks, it counts as abandoned after a day.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from linrec.errors import FileError
from linrec.reading import Name, reason

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

PREFIX, SUFFIX = ".linrec-", ".tmp"
ABANDONED_SECONDS = 24 * 3600
Write = Callable[[Path], Any]


def write_atomically(path: Name, write: Write) -> None:
    """Call ``write(temporary)`` on a name in the same folder, flush it to disk, then rename it to ``path``.

    Whatever happens in between (an error, Ctrl-C, a kill, a full disk), ``path`` keeps its old content. Raises
    FileError where it cannot be written.
    """
    target = Path(path)
    write_together(target.parent, {target.name: write})


def write_together(folder: Name, files: Mapping[str, Write]) -> None:
    """Write several files of a folder, by name, and rename them in this order once all are on the disk.

    Raises FileError; if that is before the first rename, as for a full disk, all files are as they were.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        with as_file_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # a folder that one may write to and not list
                remove_abandoned(folder)
            temporary = stack.enter_context(_temporary(folder))
        for name, write in files.items():
            with as_file_error(folder / name):
                _write(temporary / name, write)
        stack.enter_context(_locked(folder))
        for name in files:
            with as_file_error(folder / name):
                os.replace(temporary / name, folder / name)
            flush_folder(folder)


def write_text(path: Name, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, text_writer(text))


def write_tensors(path: Name, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file atomically."""
    write_atomically(path, tensor_writer(tensors, metadata))


def check_writable(folder: Name) -> None:
    """See that files can be written to the folder, which need not exist: before long work, not after it.

    Nothing is left there. Raises FileError.
    """
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with as_file_error(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _temporary(folder):
                pass
        finally:
            for made in missing:
                with contextlib.suppress(OSError):
                    made.rmdir()


def text_writer(text: str | bytes) -> Write:
    """What writes this text, as UTF-8, to a name; half a surrogate pair (of a file's name, say) is escaped."""
    content = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
    return lambda path: path.write_bytes(content)


def tensor_writer(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Write:
    """What writes these tensors to a name, as safetensors."""
    plain = {name: t.detach().contiguous() for name, t in tensors.items()}
    return lambda path: save_file(plain, path, metadata=metadata)


def pickle_writer(tensors: Mapping[str, Tensor]) -> Write:
    """What writes these tensors to a name in torch's own format, for programs that read no other."""
    plain = {name: t.detach().contiguous() for name, t in tensors.items()}
    return lambda path: torch.save(plain, path)


def fingerprint(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over plain values, and over names, dtypes, shapes and raw values of tensors, both in name order."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{t.dtype}|{list(t.shape)}|".encode())
        if t.numel():
            digest.update(ctypes.string_at(t.data_ptr(), t.numel() * t.element_size()))
    return digest.hexdigest()


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary folders that processes which are gone have left in this folder."""
    with os.scandir(folder) as entries:
        names = [e.path for e in entries if e.name.startswith(PREFIX) and e.name.endswith(SUFFIX)]
    for name in names:
        with contextlib.suppress(OSError), _locked(Path(name), wait=False) as locked:
            if locked or (locked is None and time.time() - os.stat(name).st_mtime > ABANDONED_SECONDS):
                shutil.rmtree(name, ignore_errors=True)


def lock(descriptor: int, wait: bool = True) -> bool | None:
    """Lock an open file or folder for this process: True if it is ours, False if another's, None without locks.

    It ends when the descriptor is closed, at the latest with the process.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True


def flush_folder(folder: Path) -> None:
    """See the names of a folder to the disk, where there is such a thing."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def as_file_error(path: Path) -> Iterator[None]:
    """Whatever the system says about writing, as FileError with the file and the reason."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        failed = FileError(f"{path}: could not be written ({reason(error)})")
        failed.errno = getattr(error, "errno", None)
        raise failed from error


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A new folder inside, locked for as long as it is ours, then removed."""
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
        path.mkdir()
        with _locked(path):
            if not path.exists():  # before it was locked, another writer took it for abandoned
                continue
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
            return


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool | None]:
    """The folder, locked; gives what :func:`lock` does, None where folders cannot be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield None
        return
    try:
        yield lock(handle, wait)
    finally:
        os.close(handle)


def _write(path: Path, write: Write) -> None:
    """A file with the usual permissions, whatever ``write`` gives it, seen to the disk."""
    path.touch()
    mode = path.stat().st_mode
    write(path)
    path.chmod(mode)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
