"""What the kernels of elementwise recurrences share: joining steps, rows of a packed batch, launching."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def join(a1, x1, a2, x2):
    """Step 2 after step 1, where a step is h -> a h + x."""
    return a2 * a1, a2 * x1 + x2


@triton.jit
def join_complex(ar1, ai1, xr1, xi1, ar2, ai2, xr2, xi2):
    """Step 2 after step 1 for complex numbers as pairs (real, imaginary)."""
    return (
        ar2 * ar1 - ai2 * ai1,
        ar2 * ai1 + ai2 * ar1,
        ar2 * xr1 - ai2 * xi1 + xr2,
        ar2 * xi1 + ai2 * xr1 + xi2,
    )


@triton.jit
def span(bounds, row, length, PACKED: tl.constexpr):
    """(first token, number of tokens) of a row of states, counted in ``[B * T]`` tokens; all int64."""
    if PACKED:
        first = tl.load(bounds + row).to(tl.int64)
        count = tl.load(bounds + row + 1).to(tl.int64) - first
    else:
        count = tl.cast(length, tl.int64)
        first = row * count
    return first, count


@triton.jit
def one_row(tile, time, which):
    """Row ``which`` of a tile whose first axis is numbered by ``time``: every other row is masked, then summed."""
    return tl.sum(tl.where(time == which, tile, 0.0), axis=0)


def on_device(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Launches go to the current device, which must be the tensors' own: that of x ``[...]``."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
