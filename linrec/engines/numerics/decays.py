"""Small pieces of chunk algorithms with a log-decay: every exponent is formed masked, and is <= 0."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.numerics.scans import exact, floored

LOG2 = math.log(2.0)
REACH = 40.0  # e^40 squared is within single precision, and e^-40 squared above its smallest normal number


def cumulative_decay(g: Tensor, dim: int = -2) -> Tensor:
    """Cumulative sum of log-decays g ``[...]`` over the chunk, in float64 where the device has it; g as
    :func:`floored`.

    Only differences of these sums are used; in float32 one strong reset (g = -400) would cost the decays
    after it three digits.
    """
    return exact(floored(g)).cumsum(dim)


def grown(exponent: Tensor, like: Tensor) -> Tensor:
    """e^exponent, exponent ``[...]``, in the dtype of ``like [...]``."""
    return exponent.to(like.dtype).exp()


def exclusive(total: Tensor) -> Tensor:
    """The exclusive sums that belong to inclusive ones, ``total [..., T, 1]``, by a shift: a difference would lose
    digits."""
    return F.pad(total[..., :-1, :], (0, 0, 1, 0))


def between(at_row: Tensor, at_column: Tensor, keep: Tensor, like: Tensor) -> Tensor:
    """e^{at_row_i - at_column_j} where ``keep [..., I, J]``, else 0, in the dtype of ``like [...]``.

    at_row ``[..., I, 1]``, at_column ``[..., J, 1]``.
    """
    return grown((at_row - at_column.mT).masked_fill(~keep, -torch.inf), like)


def lower(length: int, device: torch.device) -> Tensor:
    """Mask of j <= i."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
