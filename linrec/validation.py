"""Whether the values of arguments are checked, beside their shapes and dtypes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch

_validation: ContextVar[bool] = ContextVar("linrec.validation", default=False)


def validating() -> bool:
    """Whether argument *values* (not only shapes and dtypes) are checked."""
    return not torch.compiler.is_compiling() and _validation.get()


@contextlib.contextmanager
def validation(on: bool = True) -> Iterator[None]:
    """Within the block, check values too: RangeError for g > 0, a non-finite number, dt <= 0 and so on.

    Off by default, because reading values stops a GPU's queue and cannot be traced or vmapped. Holds for the calling
    thread and asyncio task.
    """
    before = _validation.get()
    _validation.set(on)
    try:
        yield
    finally:
        _validation.set(before)
