"""Which of several torch calls with the same result is fastest on this processor: timed once, then remembered.

The library behind a call, and with it the fastest call, differs between processors. So a choice is timed where it is
first needed, on the shapes that it is for, and holds for as long as the process lives. The plain call is taken unless
another one is clearly faster.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import torch

Work = Callable[[], object]

GAIN = 1.15  # times faster that a call must be: less may be the moment's, and would change from run to run
LEAST, MOST, ENOUGH = 6, 30, 0.02  # rounds at least and at most; seconds after which no more are begun


class Choice(NamedTuple):
    """``chosen`` of the calls in ``seconds``, the plain one first, for ``what``."""

    what: str
    chosen: str
    seconds: dict[str, float]

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in self.seconds.items())
        return f"{self.chosen} ({times})"


_made: dict[Hashable, Choice] = {}
_lock = threading.RLock()


def chosen(
    what: str, sizes: tuple[object, ...], works: Callable[[], Mapping[str, Work]] | None
) -> str | None:
    """The name of the fastest work for these sizes; None where nothing can be timed now, for the plain call.

    ``works``, the plain one first, are made only when they are timed; None: only what is known already counts.
    """
    if torch.compiler.is_compiling():
        return None
    threads = torch.get_num_threads()
    made = _made.get((what, sizes, threads))
    if made is not None:
        return made.chosen
    if works is None or not measurable():
        return None
    with _lock:
        if (what, sizes, threads) not in _made:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                times = timed(works())
            named = ", ".join(map(str, (what, *sizes, f"{threads} thread{'s' * (threads > 1)}")))
            best = {name: min(each.clock) for name, each in times.items()}
            _made[what, sizes, threads] = Choice(named, fastest(times), best)
        return _made[what, sizes, threads].chosen


def _after_fork() -> None:
    """A thread that was timing is not there in the child, and would hold the lock for ever."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def choices() -> list[Choice]:
    """What has been chosen in this process so far."""
    return list(_made.values())


def measurable() -> bool:
    """Whether time means something and nobody watches: no trace, no mode that would record the calls."""
    return not (
        torch.compiler.is_compiling()
        or torch.are_deterministic_algorithms_enabled()  # a choice may differ in the next run
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
    )


class Times:
    """Seconds of one work, round by round: on the clock, and of the processor, which others' work cannot lengthen."""

    def __init__(self, work: Work):
        self.work = work
        self.clock: list[float] = []
        self.processor: list[float] = []

    def round(self) -> None:
        """The work once more."""
        clock, processor = time.perf_counter(), time.thread_time()
        self.work()
        self.processor.append(time.thread_time() - processor)
        self.clock.append(time.perf_counter() - clock)

    def clearly_below(self, other: Times) -> bool:
        """Faster in the best and in the median round, and in the best of the processor's."""
        ways: tuple[Callable[[Times], float], ...] = (
            lambda times: min(times.clock),
            lambda times: statistics.median(times.clock),
            lambda times: min(times.processor),
        )
        return all(GAIN * way(self) < way(other) for way in ways)


def timed(works: Mapping[str, Work]) -> dict[str, Times]:
    """The works in turns, forth and back, so that a busy moment of the machine meets all of them."""
    for work in works.values():
        work()
    times = {name: Times(work) for name, work in works.items()}
    turns, started = list(times.values()), time.perf_counter()
    for count in range(MOST):
        if count >= LEAST and time.perf_counter() - started > ENOUGH:
            break
        for each in turns:
            each.round()
        turns.reverse()
    return times


def fastest(times: Mapping[str, Times]) -> str:
    """The first, which is the plain one, unless another is clearly below it."""
    plain = next(iter(times))
    clear = [name for name in times if times[name].clearly_below(times[plain])]
    return min(clear, key=lambda name: min(times[name].clock), default=plain)
