"""The definition of the matrix recurrence, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.engines.matrix.terms import Heads
from linrec.rule import donating


def scan_tokens(x: Heads, state: Tensor, predict: str, readout: str) -> tuple[Tensor, Tensor]:
    """Run token after token; ``state`` is ``[B, H, R, K, V]``. Returns (o ``[B, H, R, T, V]``, final state)."""
    outputs = []
    for t in range(x.v.shape[-2]):
        o, state = one_token(x.rows(t, t + 1), state, predict, readout, own=t > 0 or donating())
        outputs.append(o)
    return (torch.cat(outputs, dim=-2) if outputs else torch.zeros_like(x.v)), state


def one_token(
    x: Heads, state: Tensor, predict: str, readout: str, own: bool = False
) -> tuple[Tensor, Tensor]:
    """One step; every tensor of ``x`` has a time axis of length one. ``own``: the state may be overwritten."""
    o = x.q @ state if readout == "pre" else None
    if x.a is not None and predict == "undecayed":
        predicted = x.a @ state
    state = _times(state, x.g.exp().mT, own)
    written = x.v
    if x.a is not None:
        if predict == "decayed":
            predicted = x.a @ state
        if x.b is None:
            written = x.v + predicted
        else:
            state = _plus_outer(state, x.b.mT, predicted)
    state = _plus_outer(state, x.k.mT, written)
    if o is None:
        return x.q @ state, state
    if x.bonus is not None:
        o = o + (x.q * x.bonus * x.k).sum(-1, keepdim=True) * x.v
    return o, state


def _times(state: Tensor, decay: Tensor, own: bool) -> Tensor:
    return state.mul_(decay) if own and _only_values() else state * decay


def _plus_outer(state: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """state + column row; the state is a product made here, and may be written over where only values count."""
    return state.addcmul_(column, row) if _only_values() else torch.addcmul(state, column, row)


def _only_values() -> bool:
    return not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
