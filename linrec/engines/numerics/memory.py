"""Memory of sequences on a CPU: large tensors are made of huge pages, and of blocks that are used again.

An allocator returns every large block to the system and asks for it anew; the first touch of each page then costs more
than the arithmetic on it. A training step asks for blocks of the same sizes as the step before, so a freed block waits
for the next tensor of its size. While it waits the system may take its pages back whenever it needs them.
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from linrec.engines.numerics.checks import readable

LARGE = 8 << 20  # bytes: a few huge pages; allocators keep smaller blocks themselves
WAITING = 1 << 30  # bytes of address space that wait at most

_SUPPORTED = all(hasattr(mmap, name) for name in ("MADV_HUGEPAGE", "MADV_FREE", "MAP_ANONYMOUS"))


class Blocks:
    """Blocks that nobody uses, the one freed first given up first.

    A block may come back at any moment, also while the same thread looks for one: nobody waits for the lock.
    """

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self.waiting: OrderedDict[int, mmap.mmap] = OrderedDict()  # by identity
        self.lock = threading.Lock()

    def take(self, size: int) -> mmap.mmap:
        """A block of exactly this size."""
        if self.lock.acquire(blocking=False):
            try:
                for key, block in reversed(self.waiting.items()):
                    if len(block) == size:
                        self.size -= size
                        return self.waiting.pop(key)
            finally:
                self.lock.release()
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.madvise(mmap.MADV_HUGEPAGE)
        return block

    def give(self, block: mmap.mmap) -> None:
        """The block waits, or goes back to the system; called when the last tensor in it is gone."""
        if len(block) > self.limit or not self.lock.acquire(blocking=False):
            return
        try:
            block.madvise(mmap.MADV_FREE)
            self.waiting[id(block)] = block
            self.size += len(block)
            while self.size > self.limit:
                self.size -= len(self.waiting.popitem(last=False)[1])
        finally:
            self.lock.release()


_BLOCKS = Blocks(WAITING)


def fresh(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty contiguous tensor on the device of ``like [...]``. A large one on a Linux CPU cannot be resized."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or like.device.type != "cpu" or not _SUPPORTED or not readable(like):
        return like.new_empty(shape, dtype=dtype)
    block = _BLOCKS.take(size)
    view = memoryview(block)
    weakref.finalize(view, _BLOCKS.give, block).atexit = False
    return torch.frombuffer(view, dtype=dtype).view(shape)
