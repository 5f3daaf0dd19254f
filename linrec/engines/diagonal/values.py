"""Selective scans: one token, and, where only values are asked for, chunks in memory that is used again.

Fresh memory for the decays and inputs of every chunk costs more time than the arithmetic on them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from linrec.donation import taken
from linrec.engines.diagonal.terms import DiagonalTerms, Selective
from linrec.engines.numerics.checks import only_values
from linrec.engines.numerics.recurrence import recurrence_in_place

CACHED = 1 << 18  # numbers of a chunk's decays, and of its inputs: what stays in a core's own cache
LOG2_E = 1 / math.log(2)


def selective_token(terms: DiagonalTerms, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Of tokens ``[B, 1, ...]`` and a state ``[B, D, N]``, which is written over where it is given away."""
    s, t = _selective(terms), terms.widened_tokens()
    step, x, rate, into = t["step"], t["x"], s.of(t, "rate"), s.of(t, "into")
    exponent = step.mT * rate
    decay, written = exponent.exp() if s.exponential else 1 + exponent, (step * x).mT * into
    if only_values(state, written, decay) and taken(state):
        state = torch.addcmul(written, decay, state, out=state)
    else:
        state = torch.addcmul(written, decay, state)
    o = torch.bmm(t["out"], state.mT) if "out" in t else (state * s.of(t, "out")).sum(-1)[:, None]
    return _skipped(s, o, x, scale), state


def scan_values(
    terms: DiagonalTerms, state: Tensor, scale: float, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """Of any number of tokens, from ``state [B, D, N]``; where a row is padded with zeros the state stays as it is."""
    s, (x, step) = _selective(terms), (terms.tokens["x"], terms.tokens["step"])
    t = {"written": step * x, **terms.tokens}
    rows = {name: y.mT.contiguous() for name, y in s.constants.items()}
    where = rows if "rate" in rows else t
    where["rate"] = where["rate"] * LOG2_E if s.exponential else where["rate"]
    h, length = state.mT, x.shape[1]
    size = max(min(chunk or CACHED // max(h.numel(), 1), length), 1)
    decays, inputs = (h.new_empty(h.shape[0], size, *h.shape[1:]) for _ in range(2))
    o = torch.empty_like(x)
    for start in range(0, length, size):
        now = {name: y[:, start : start + size] for name, y in t.items()}
        count = now["x"].shape[1]
        decay, every = decays[:, :count], inputs[:, :count]
        rate, into = (rows[n] if n in rows else now[n][..., None] for n in ("rate", "into"))
        torch.mul(now["step"][:, :, None], rate, out=decay)
        decay = decay.exp2_() if s.exponential else decay.add_(1)
        torch.mul(now["written"][:, :, None], into, out=every)
        recurrence_in_place(decay, every, h)
        read = (rows["out"] * every).sum(2) if "out" in rows else (now["out"][:, :, None] @ every)[:, :, 0]
        o[:, start : start + size] = _skipped(s, read, now["x"], scale)
        h = every[:, -1].clone()
    return o, h.mT.contiguous()


def _skipped(s: Selective, o: Tensor, x: Tensor, scale: float) -> Tensor:
    o = o if scale == 1 else scale * o
    return o if s.skip is None else torch.addcmul(o, s.skip, x)


def _selective(terms: DiagonalTerms) -> Selective:
    assert terms.selective is not None
    return terms.selective
