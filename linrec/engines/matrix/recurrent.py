"""The definition of the matrix recurrence, token by token, each in as few torch calls as the algebra allows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from linrec.engines.matrix.terms import MatrixTerms
from linrec.rule import donating


class Rows(NamedTuple):
    """Value heads first, N = B HV: q, k, a, b ``[N, T, K]``, v ``[N, T, V]``, g ``[N, T, 1 or K]``, write and erase
    ``[N, T, 1]``, bonus ``[N, 1, K]``; in accumulator precision, q scaled."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None
    a: Tensor | None
    b: Tensor | None
    write: Tensor | None
    erase: Tensor | None
    bonus: Tensor | None

    def token(self, t: int) -> Rows:
        """The token t of everything that has a time axis."""
        *timed, bonus = self
        return Rows._make([*(None if x is None else x[:, t : t + 1] for x in timed), bonus])


def scan_tokens(terms: MatrixTerms, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Run token after token; ``state`` is ``[B, HV, K, V]``. Returns (o ``[B, T, HV, V]``, final state)."""
    batch, length, heads, width = terms.v.shape
    x, shape = to_rows(terms, scale), state.shape
    state = state.reshape(-1, *shape[2:])
    if length == 1:
        o, state = one_token(x, state, terms.predict, terms.readout, donating())
        return terms.skipped(o.reshape(batch, 1, heads, width)), state.view(shape)
    outputs = []
    for t in range(length):
        o, state = one_token(x.token(t), state, terms.predict, terms.readout, t > 0 or donating())
        outputs.append(o)
    o = torch.cat(outputs, dim=1) if outputs else torch.zeros_like(x.v)
    o = o.reshape(batch, heads, length, o.shape[2]).transpose(1, 2)
    return terms.skipped(o), state.reshape(shape)


def to_rows(terms: MatrixTerms, scale: float) -> Rows:
    """From the time-first layout of a call; heads that several value heads share are repeated, as views if they can."""
    (batch, length, heads, _), dtype = terms.v.shape, terms.accumulator

    def rows(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        if x.dtype != dtype:
            x = x.to(dtype)
        own_heads = x.shape[2] == heads
        if length == 1 and own_heads:  # one call does it
            return x.reshape(batch * heads, 1, x.shape[3] if x.dim() == 4 else 1)
        if batch == length == x.shape[2] == 1 and x.dim() == 4:
            return x[0].expand(heads, 1, -1)
        x = (x if x.dim() == 4 else x[..., None]).transpose(1, 2)
        if own_heads:
            return x.flatten(0, 1)
        return x[:, :, None].expand(-1, -1, heads // x.shape[1], -1, -1).flatten(0, 2)

    t, bonus = terms, terms.bonus
    q = rows(t.q if scale == 1 else t.q.to(dtype) * scale)
    if bonus is not None:
        bonus = bonus.to(dtype).expand(batch, -1, -1).flatten(0, 1)[:, None]
    timed = (rows(x) for x in (t.k, t.v, t.g, t.a, t.b))
    write = rows(t.write)
    return Rows._make([q, *timed, write, write if t.erase is t.write else rows(t.erase), bonus])


def one_token(x: Rows, state: Tensor, predict: str, readout: str, own: bool) -> tuple[Tensor, Tensor]:
    """One step of ``[N, K, V]``; the time axes have length one. ``own``: the state given may be overwritten."""
    written = x.v if x.write is None else x.write * x.v
    reader = x.a if x.erase is None else x.k
    o = None
    if readout == "pre":
        o = torch.bmm(x.q, state)
        if x.bonus is not None:
            o = o + (x.q * x.bonus * x.k).sum(-1, keepdim=True) * written
    if reader is not None and predict == "undecayed":
        predicted = torch.bmm(reader, state)
    if x.g is not None:
        state, own = _times(state, x.g.exp().mT, own), True
    if reader is not None:
        if predict == "decayed":
            predicted = torch.bmm(reader, state)
        if x.erase is not None:
            written = torch.addcmul(written, x.erase, predicted, value=-1)
        elif x.b is None:
            written = written + predicted
        else:
            state, own = _plus_outer(state, x.b, predicted, own), True
    state = _plus_outer(state, x.k, written, own)
    return (torch.bmm(x.q, state) if o is None else o), state


def _times(state: Tensor, decay: Tensor, own: bool) -> Tensor:
    return state.mul_(decay) if own and _only_values() else state * decay


def _plus_outer(state: Tensor, column: Tensor, row: Tensor, own: bool) -> Tensor:
    """state + column^T row, in place where the state is ours and only values count."""
    if own and _only_values():
        return state.addcmul_(column.mT, row)
    return torch.addcmul(state, column.mT, row)


def _only_values() -> bool:
    return not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
