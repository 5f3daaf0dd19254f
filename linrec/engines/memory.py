"""Memory of sequences: where a system has huge pages, large tensors are made of them.

An allocator asks the system for every large block anew, and the first touch of each page of 4 KiB then costs more than
the arithmetic on it. Of pages of 2 MiB there are five hundred times fewer.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from linrec.engines.checks import readable

LARGE = 8 << 20  # bytes: a few huge pages; allocators tend to keep smaller blocks and give them out again


def fresh(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty contiguous tensor on the device of ``like``. A large one on Linux CPUs cannot be resized."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or like.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE") or not readable(like):
        return like.new_empty(shape, dtype=dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
