"""Matrix products of activations with a weight, where only values are wanted."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.checks import only_values

WORTH = 1 << 20  # multiply-adds from which oneDNN's time to set up, some ten microseconds, is won back
WIDE = (torch.float32, torch.float64)
PARTS = 32  # at most; more than one is enough, and a thread reads at least one


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x ``[..., n]``, weight ``[m, n]``, bias ``[m]`` or None -> x weight^T + bias ``[..., m]``.

    On a CPU, without gradients, the library behind ``torch.mm`` may read a weight for one row at half the speed of
    memory, and may not use the widest instructions of the processor for several. So one row is a batched product of
    parts of the weight, which it reads at the speed of memory; several go through oneDNN, in float32.
    """
    if x.dtype is weight.dtype and x.dtype in WIDE and x.shape[-1] == weight.shape[1] and _plain(x, weight):
        parts = _parts(weight.shape[0]) if 0 < x.numel() == x.shape[-1] else 1
        if parts > 1:
            return _one_row(x, weight, bias, parts)
        if x.dtype == torch.float32 and x.numel() * weight.shape[0] >= WORTH and _onednn():
            return torch.ops.mkldnn._linear_pointwise.default(x.contiguous(), weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _one_row(x: Tensor, weight: Tensor, bias: Tensor | None, parts: int) -> Tensor:
    width = weight.shape[1]
    rows = weight.view(parts, -1, width)
    column = x.contiguous().as_strided(
        (parts, width, 1), (0, 1, width)
    )  # with other strides MKL takes a slow way
    y = torch.bmm(rows, column) if bias is None else torch.baddbmm(bias.view(parts, -1, 1), rows, column)
    return y.view(*x.shape[:-1], -1)


@cache
def _parts(rows: int) -> int:
    """Into how many equal parts this many rows are cut; one where there is no batched product that is faster."""
    return math.gcd(rows, PARTS) if rows and torch.backends.mkl.is_available() else 1


def _plain(x: Tensor, weight: Tensor) -> bool:
    return only_values(x, weight) and weight.is_contiguous() and not torch.is_autocast_enabled("cpu")


def _onednn() -> bool:
    return torch._C._get_mkldnn_enabled() and _has_onednn()


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
