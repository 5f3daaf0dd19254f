"""Which launch configuration a stage of the matrix kernels gets: the table's, or that of a file that was asked for.

Rows of a file that somebody made with ``linrec tune`` and asked for stand before the table.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from linrec.kernels.matrix.launch_file import read
from linrec.kernels.matrix.launch_table import CHUNK, CHUNKS, LAUNCHES, At, For, Launch, Rows, padded

FILE = "LINREC_LAUNCHES"  # the environment variable that names a file of rows


def launch_for(stage: str, architecture: str, path: str, width: int, size: int) -> Launch:
    """The configuration of a stage; ``width`` is the wider of K and V, ``size`` the bytes of an element."""
    own = asked().get(At(stage, architecture, path, padded(width), size))
    return own if isinstance(own, Launch) else _first(LAUNCHES[stage], architecture, path, width, size)


def chunk_length(architecture: str, path: str, width: int, size: int) -> int:
    """Tokens a chunk: the same in the forward, which may keep what it finds for each chunk, and in the backward."""
    own = asked().get(At(CHUNK, architecture, path, padded(width), size))
    return own if isinstance(own, int) else _first(CHUNKS, architecture, path, width, size)


def nearest(architecture: str) -> str:
    """The architecture whose rows serve for any: the newest that is not newer; of consumer parts, the smallest."""
    if architecture.startswith("gfx"):
        return "gfx942"
    number = int(re.sub(r"\D", "", architecture))
    if number < 90 or number >= 120:  # sm_86, sm_89 and sm_120 have less shared memory than any of the others
        return "sm_80"
    return "sm_90" if number < 100 else "sm_100"


X = TypeVar("X")


def _first(rows: Iterable[tuple[For, X]], architecture: str, path: str, width: int, size: int) -> X:
    known = nearest(architecture)
    for fit, found in rows:
        named = fnmatchcase(known, fit.architecture) and fnmatchcase(path, fit.path)
        if named and width <= fit.width and size <= fit.size:
            return found
    raise LookupError(
        f"no launch configuration: {path} on {architecture}, {width} wide, {size} bytes an element"
    )


_asked: Rows | None = None  # None: the environment has not been read yet
_one_at_a_time = threading.RLock()


def asked() -> Rows:
    """The rows that stand before the table: those of the file that ``LINREC_LAUNCHES`` names, read at the first use."""
    global _asked
    if _asked is None:
        use(os.environ.get(FILE) or None)
        assert _asked is not None
    return _asked


def use(path: str | Path | None) -> None:
    """From now on the rows of this file stand before the table; None: the table alone.

    Not between a forward and its backward, nor after ``torch.compile``: both keep tensors of one chunk length.
    ConfigError and UnknownNameError where the file is wrong; then nothing changes.
    """
    global _asked
    _asked = {} if path is None else read(path)


@contextlib.contextmanager
def using(rows: Rows) -> Iterator[None]:
    """Within the block these rows stand before the table, and no others.

    For all threads, because a GPU's backward pass runs on a thread of its own; so blocks of other threads wait.
    """
    global _asked
    with _one_at_a_time:
        before, _asked = _asked, rows
        try:
            yield
        finally:
            _asked = before
