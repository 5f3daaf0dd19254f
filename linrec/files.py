"""Writing files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Call ``write(temporary)`` on a name in the same folder, flush it to disk, then rename it to ``path``.

    Whatever happens in between (an error, Ctrl-C, a full disk), ``path`` keeps its old content and the
    temporary file is removed.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        _flush(temporary)
        # mkstemp makes a file only its owner can read; a checkpoint gets the usual permissions.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write one safetensors file atomically."""
    plain = {name: t.detach().contiguous() for name, t in tensors.items()}
    write_atomically(path, lambda temporary: save_file(plain, temporary, metadata=metadata))


def tensor_chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """Names, dtypes, shapes and raw values of tensors in name order: what a digest is taken over."""
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        yield f"{name}|{t.dtype}|{list(t.shape)}|".encode()
        if t.numel():
            yield ctypes.string_at(t.data_ptr(), t.numel() * t.element_size())


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
