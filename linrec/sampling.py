"""Drawing a token from logits: what may be asked for, and the nucleus."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from linrec.errors import RangeError


def reseed(generator: torch.Generator, seed: int) -> None:
    """Restart random numbers; RangeError for a seed of more than 64 bits."""
    if not -(2**63) <= seed < 2**64:
        raise RangeError(f"seed: expected an integer of 64 bits, got {seed}")
    generator.manual_seed(seed)


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """RangeError for values outside of their range."""
    if not 0 <= temperature < math.inf:
        raise RangeError(f"temperature: expected a finite number >= 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise RangeError(f"top_k: expected an integer >= 1 or None, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise RangeError(f"top_p: expected 0 < top_p <= 1 or None, got {top_p}")


def restrict(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """``logits [vocab_size]`` with -inf for every token outside the nucleus; the likeliest token always stays."""
    values, order = logits.sort(descending=True, stable=True)
    keep = torch.ones_like(values, dtype=torch.bool)
    if top_k is not None:
        keep[top_k:] = False
    if top_p is not None:
        p = values.masked_fill(~keep, -math.inf).softmax(-1)
        keep &= p.cumsum(-1) - p < top_p
    return torch.full_like(logits, -math.inf).scatter(0, order, values.masked_fill(~keep, -math.inf))
