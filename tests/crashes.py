"""Killing a process at any line of the code that writes files, and filling its disk."""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any


def fork(work: Callable[[], Any]) -> int:
    """The process id of a copy of this process that does ``work`` and ends: 0 if it returned, 1 if it raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside torch's idle threads
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_everywhere(work: Callable[[], Any], modules: list[Any], step: int = 1) -> Iterator[int]:
    """Do ``work`` in copies of this process, the first killed (-9) at its first line in ``modules``, and so on.

    Yields after each, until one comes to its end.
    """
    files = {str(Path(module.__file__)) for module in modules}
    line = 0
    while True:
        code = wait(fork(partial(_killed, work, files, line)))
        assert code in (0, -signal.SIGKILL), f"line {line}: exit code {code}"
        yield line
        if code == 0:
            assert line > 10, "the work did not pass through these modules"
            return
        line += step


def on_a_full_disk(work: Callable[[], Any], room: int) -> int:
    """The exit code of a copy of this process in which no file can become larger than ``room`` bytes."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        work()

    return wait(fork(limited))


def _killed(work: Callable[[], Any], files: set[str], line: int) -> None:
    left = line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return trace

    sys.settrace(trace)
    work()
    sys.settrace(None)
