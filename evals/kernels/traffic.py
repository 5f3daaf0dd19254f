"""Bytes and FLOPs of a recorded launch, counted by walking through its programs without any data.

Runs in a process with ``TRITON_INTERPRET=1``. The kernel's own code computes its addresses from the real sizes and
strides; loads give zeros, stores and products do nothing, and all three are counted. A sample of the grid's programs
stands for all of them. What reaches the memory, of what programs ask for:

* reads in sectors of 32 bytes, as a GPU fetches them;
* a sector that a program loads again counts again once ``REACH`` bytes of other sectors were loaded since: a cache of
  that size which gives up what was used least recently;
* what several programs read comes from memory once: programs that share it run side by side (the programs of one
  head that differ in the block of values), so one launch reads of a tensor at most the tensor;
* writes count each time; an atomic addition is a read and a write.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from linrec.evals.kernels.capture import Launch, size

SECTOR = 32
REACH = 128 * 1024  # bytes of cache that a program has for what it loads again
SAMPLE = 8  # programs walked through in each launch
ENOUGH = 2000  # loads and stores after which two programs will do: each program goes through the whole sequence then


@dataclass
class Traffic:
    """Of one launch, all programs together."""

    read: dict[str, float] = field(default_factory=dict)  # bytes, by argument
    written: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0  # of tl.dot

    @property
    def bytes(self) -> float:
        """Read and written."""
        return sum(self.read.values()) + sum(self.written.values())


class _Region:
    """One tensor argument, at a made-up address."""

    def __init__(self, name: str, tensor: Tensor, start: int):
        self.name, self.tensor, self.start, self.dtype = name, tensor, start, tensor.dtype
        extent = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        # The load that used each sector last.
        self.last = np.full(extent * tensor.element_size() // SECTOR + 2, -1, np.int64)
        self.first_time = self.fetched = self.written = 0

    def data_ptr(self) -> int:
        return self.start


class _Walk:
    """Counters of the launch that is walked through.

    Loads are numbered; ``latest`` is how many sectors were used last by each load of the program since ``began``.
    """

    SPACING = 1 << 44

    def __init__(self, launch: Launch):
        self.loads = self.began = self.flops = self.accesses = self.programs = 0
        self.latest = np.zeros(ENOUGH, np.int64)
        self.regions: list[_Region] = []
        self.arguments: dict[str, Any] = {}
        seen: dict[Any, _Region] = {}
        for name, value in launch.arguments.items():
            if isinstance(value, Tensor):
                identity = (
                    value.untyped_storage()._cdata,
                    value.storage_offset(),
                    value.shape,
                    value.stride(),
                )
                if identity not in seen:
                    seen[identity] = _Region(name, value, self.SPACING * (len(seen) + 1))
                value = seen[identity]
            self.arguments[name] = value
        self.regions = list(seen.values())

    def read(self, addresses: np.ndarray) -> None:
        if addresses.size == 0:
            return
        self.accesses += 1
        region = self._region(addresses)
        sectors = np.unique((addresses - np.uint64(region.start)) // np.uint64(SECTOR)).astype(np.int64)
        last = region.last[sectors]
        new = last < self.began
        region.first_time += SECTOR * int(new.sum())
        missed = new | (SECTOR * self._others_since(np.where(new, self.loads, last)) > REACH)
        region.fetched += SECTOR * int(missed.sum())
        np.subtract.at(self.latest, last[~new] - self.began, 1)
        self.latest[self.loads - self.began] = len(sectors)
        region.last[sectors] = self.loads
        self.loads += 1

    def _others_since(self, loads: np.ndarray) -> np.ndarray:
        """How many sectors were used after these loads."""
        count = self.loads - self.began
        if count == len(self.latest):
            self.latest = np.concatenate([self.latest, np.zeros_like(self.latest)])
        used = np.append(self.latest[:count], 0)
        since = used.sum() - used.cumsum()
        return since[loads - self.began]

    def write(self, addresses: np.ndarray) -> None:
        if addresses.size:
            self.accesses += 1
            region = self._region(addresses)
            region.written += addresses.size * region.tensor.element_size()

    def begin_program(self) -> None:
        self.programs += 1
        self.began = self.loads
        self.latest[:] = 0

    @property
    def enough(self) -> bool:
        return self.programs >= 2 and self.accesses > ENOUGH

    def _region(self, addresses: np.ndarray) -> _Region:
        return self.regions[int(addresses.flat[0]) // self.SPACING - 1]


def traffic(launch: Launch, sample: int = SAMPLE) -> Traffic:
    """Count one launch, from ``sample`` of its programs drawn with a fixed seed, or from all if there are fewer."""
    walk = _Walk(launch)
    grid = (*launch.grid, 1, 1)[:3]
    every = itertools.product(*map(range, grid))
    total = math.prod(grid)
    programs = list(every) if total <= sample else _drawn(grid, sample)
    with _counting(walk):
        _walk_programs(launch, walk, grid, programs)
    weight = total / walk.programs
    counted = Traffic(flops=walk.flops * weight)
    for region in walk.regions:
        if region.fetched:
            again = region.fetched / region.first_time
            counted.read[region.name] = min(region.first_time * weight, size(region.tensor)) * again
        if region.written:
            counted.written[region.name] = region.written * weight
    return counted


def _drawn(grid: tuple[int, ...], sample: int) -> list[tuple[int, ...]]:
    """Of a short first axis every block in turn: programs along it share their inputs, and one may store for all."""
    draw = random.Random(0)
    if grid[0] > sample:
        return [tuple(draw.randrange(n) for n in grid) for _ in range(sample)]
    places = [tuple(draw.randrange(n) for n in grid[1:]) for _ in range(max(1, sample // grid[0]))]
    return [(first, *place) for place in places for first in range(grid[0])]


def _walk_programs(
    launch: Launch, walk: _Walk, grid: tuple[int, ...], programs: list[tuple[int, ...]]
) -> None:
    from triton.runtime import interpreter

    function = launch.kernel.rewrite()
    annotations = inspect.get_annotations(launch.kernel.fn)
    constants = {name for name, kind in annotations.items() if "constexpr" in str(kind)}
    arguments = {n: v if n in constants else interpreter._implicit_cvt(v) for n, v in walk.arguments.items()}
    builder = interpreter.interpreter_builder
    sampled = len(programs) < math.prod(grid)
    scope = interpreter._patch_lang(function)
    try:
        builder.set_grid_dim(*grid)
        for program in programs:
            if sampled and walk.enough:
                break
            builder.set_grid_idx(*program)
            walk.begin_program()
            function(**arguments)
    finally:
        scope.restore()


@contextlib.contextmanager
def _counting(walk: _Walk) -> Iterator[None]:
    """Within the block, the interpreter counts and computes nothing."""
    replaced = _counters(walk)
    before = [getattr(kind, name) for kind, name, _ in replaced]
    for kind, name, method in replaced:
        setattr(kind, name, method)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        for (kind, name, _), method in zip(replaced, before, strict=True):
            setattr(kind, name, method)


def _counters(walk: _Walk) -> list[tuple[type, str, Callable[..., Any]]]:
    """The interpreter's methods, by class and name, that go through memory or multiply, as counts of both."""
    from triton.runtime.interpreter import InterpreterBuilder, ScanOps, TensorHandle, _get_np_dtype

    def active(ptrs: Any, mask: Any) -> np.ndarray:
        return ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)]

    def load(self: Any, ptrs: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        walk.read(active(ptrs, mask))
        kind = ptrs.get_element_ty()
        return TensorHandle(np.zeros(ptrs.data.shape, _get_np_dtype(kind)), kind)

    def store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> None:
        walk.write(active(ptrs, mask))

    def atomic(self: Any, op: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        walk.read(active(ptrs, mask))
        walk.write(active(ptrs, mask))
        return value

    def dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        walk.flops += 2 * a.data.size * b.data.shape[-1]
        return d

    def scan(self: Any, inputs: Any) -> Any:
        return list(inputs)  # same shapes; joining element by element in Python would take minutes

    return [
        (InterpreterBuilder, "create_masked_load", load),
        (InterpreterBuilder, "create_masked_store", store),
        (InterpreterBuilder, "create_atomic_rmw", atomic),
        (InterpreterBuilder, "create_dot", dot),
        (ScanOps, "generic_scan", scan),
    ]
