"""The definition of the matrix recurrence, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.engines.matrix.terms import Heads


def scan_tokens(x: Heads, state: Tensor, predict: str, readout: str) -> tuple[Tensor, Tensor]:
    """Run token after token; ``state`` is ``[B, H, R, K, V]``. Returns (o ``[B, H, R, T, V]``, final state)."""
    outputs = []
    for t in range(x.v.shape[-2]):
        o, state = one_token(x.rows(t, t + 1), state, predict, readout)
        outputs.append(o)
    return (torch.cat(outputs, dim=-2) if outputs else torch.zeros_like(x.v)), state


def one_token(x: Heads, state: Tensor, predict: str, readout: str) -> tuple[Tensor, Tensor]:
    """One step; every tensor of ``x`` has a time axis of length one."""
    before = state
    decayed = state * x.g.exp().mT
    written, state = x.v, decayed
    if x.a is not None:
        predicted = x.a @ (decayed if predict == "decayed" else before)
        if x.b is None:
            written = x.v + predicted
        else:
            state = state + x.b.mT * predicted
    state = state + x.k.mT * written
    if readout == "post":
        return x.q @ state, state
    o = x.q @ before
    if x.bonus is not None:
        o = o + (x.q * x.bonus * x.k).sum(-1, keepdim=True) * x.v
    return o, state
