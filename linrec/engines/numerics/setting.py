"""torch's setting for float32 products in oneDNN: one for the whole process, and so changed by counting.

Threads and tasks that want it changed are counted under a lock. The first one changes it, the last one restores it,
in whatever order they come and go, and also when one of them is interrupted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

Sections = dict[object, int]  # how much each of those inside adds to their number

_own: ContextVar[Sections] = ContextVar("sections", default={})  # noqa: B039 (of this thread or task; never changed)


class Setting:
    """``torch.backends.mkldnn.matmul.fp32_precision``, ``before`` where nobody wants it changed, else ``inside``."""

    def __init__(self, before: str, inside: str):
        self.before, self.inside, self.changed = before, inside, False
        self.sections: Sections = {}
        self.lock = threading.RLock()  # a section may end while garbage is collected, at any moment
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    @contextmanager
    def wanted(self, wide: bool) -> Iterator[None]:
        """This thread or task wants it changed, or inside of such a section, for a while, not."""
        outer, section = _own.get(), object()
        if wide == _wide(outer):
            yield
            return
        change = 1 if wide else -1
        with self._inside(section, change, {**outer, section: change}):
            yield

    @contextmanager
    def alone(self, wide: bool) -> Iterator[None]:
        """As it is when one section, or none, wants it changed, whoever does; the others wait meanwhile."""
        section = object()
        with (
            self.lock,
            self._inside(section, int(wide) - sum(self.sections.values()), {section: int(wide)}),
        ):
            yield

    @contextmanager
    def _inside(self, section: object, change: int, own: Sections) -> Iterator[None]:
        outer = _own.get()

        def leave() -> None:
            _own.set(outer)
            self._count(section, 0)

        try:
            try:
                _own.set(own)
                self._count(section, change)
                yield
            finally:
                leave()
        finally:
            leave()  # an interrupt may have ended the first attempt

    def free(self) -> bool:
        """Whether the caller has not chosen it."""
        return self._read() == (self.inside if self.changed else self.before)

    def _count(self, section: object, change: int) -> None:
        with self.lock:
            if change:
                self.sections[section] = change
            else:
                self.sections.pop(section, None)
            self._settle()

    def _settle(self) -> None:
        """Change or restore it as they say who are inside. What the caller has chosen meanwhile stays."""
        if _wide(self.sections) and not self.changed and self._read() == self.before:
            self.changed = True
            self._write(self.inside)
        if not _wide(self.sections) and self.changed:
            if self._read() == self.inside and not _medium():
                self._write(self.before)
            self.changed = False

    def _read(self) -> str:
        return str(_matmul().fp32_precision)

    def _write(self, value: str) -> None:
        _matmul().fp32_precision = value

    def _after_fork(self) -> None:
        """Of all threads only this one lives on in the child."""
        self.lock = threading.RLock()
        self.sections = dict(_own.get())
        self._settle()


def _wide(sections: Sections) -> bool:
    return sum(sections.values()) > 0


def _matmul() -> Any:
    """torch's settings of oneDNN's products, whose types do not know all of them."""
    onednn: Any = torch.backends.mkldnn
    return onednn.matmul


def _medium() -> bool:
    """Whether the caller has allowed bfloat16 by torch's older function, which stands for the same setting."""
    try:
        return torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:  # it finds the setting changed, as it is in a section
        return False
