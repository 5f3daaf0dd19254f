"""The definition of the matrix recurrence, token by token, each in as few torch calls as the algebra allows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from linrec.donation import taken
from linrec.engines.matrix.terms import MatrixTerms
from linrec.rule import Call


class Rows(NamedTuple):
    """Value heads first, N = B HV: q, k, a, b ``[N, T, K]``, v ``[N, T, V]``, g ``[N, T, 1 or K]``, write and erase
    ``[N, T, 1]``, bonus ``[N, 1, K]``; in accumulator precision."""

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


def step(terms: MatrixTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """One token; ``state`` is ``[B, HV, K, V]``. Returns (o ``[B, 1, HV, V]``, the next state)."""
    batch, _, heads, width = terms.v.shape
    shape, values = state.shape, _only_values()
    own = values and taken(state)
    state = state.reshape(batch * heads, shape[2], shape[3])
    o, state = one_token(to_rows(terms), state, terms, call.scale, values, own)
    return terms.skipped(o.reshape(batch, 1, heads, width)), state.view(shape)


def recurrent(terms: MatrixTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Token after token; ``state`` is ``[B, HV, K, V]``. Returns (o ``[B, T, HV, V]``, the final state)."""
    batch, length, heads, _ = terms.v.shape
    if length == 1:
        return step(terms, state, call)
    values = _only_values()
    own = values and length > 0 and taken(state)
    x, shape = to_rows(terms), state.shape
    state = state.reshape(batch * heads, shape[2], shape[3])
    x, outputs = x._replace(q=x.q * call.scale), []
    for t in range(length):
        o, state = one_token(x.token(t), state, terms, 1, values, own or t > 0)
        outputs.append(o)
    o = torch.cat(outputs, dim=1) if outputs else torch.zeros_like(x.v)
    o = o.reshape(batch, heads, length, o.shape[2]).transpose(1, 2)
    return terms.skipped(o), state.reshape(shape)


def to_rows(terms: MatrixTerms) -> Rows:
    """From the time-first layout of a call; heads that several value heads share are repeated, as views if they can."""
    t, dtype = terms, terms.accumulator
    batch, length, heads, _ = t.v.shape

    def rows(x: Tensor) -> Tensor:
        if x.dtype is not dtype:
            x = x.to(dtype)
        shape = x.shape
        if length == 1 and shape[2] == heads:  # one call does it
            return x.reshape(batch * heads, 1, 1 if len(shape) == 3 else shape[3])
        if len(shape) == 3:
            return x.transpose(1, 2).flatten(0, 1)[..., None]
        if batch == length == shape[2] == 1:
            return x.squeeze(0).expand(heads, 1, -1)
        x = x.transpose(1, 2)
        if shape[2] == heads:
            return x.flatten(0, 1)
        return x[:, :, None].expand(-1, -1, heads // shape[2], -1, -1).flatten(0, 2)

    write, erase, bonus = t.write, t.erase, t.bonus
    same = erase is write
    write = None if write is None else rows(write)
    erase = write if same else None if erase is None else rows(erase)
    if bonus is not None:
        bonus = bonus.to(dtype).expand(batch, -1, -1).flatten(0, 1)[:, None]
    g, a, b = [None if x is None else rows(x) for x in (t.g, t.a, t.b)]
    return Rows(rows(t.q), rows(t.k), rows(t.v), g, a, b, write, erase, bonus)


def one_token(
    x: Rows, state: Tensor, terms: MatrixTerms, scale: float, values: bool, own: bool
) -> tuple[Tensor, Tensor]:
    """One step of ``[N, K, V]``; the time axes have length one.

    ``values``: nothing but values counts, so that what is made here may be overwritten; ``own``: the state given too.
    """
    decay = None if x.g is None else x.g.exp()
    before = _read(x, state, scale, values) if terms.readout == "pre" else None
    predicted = _predicted(x, state, decay if terms.predict == "decayed" else None)
    written = _written(x, predicted)
    if before is not None and x.bonus is not None:
        now = (x.q * x.bonus * x.k).sum(-1, keepdim=True) * scale
        before = before + now * (x.v if x.write is None else x.write * x.v)
    state = _next(state, decay, x.k, written, values, own)
    if x.b is not None and predicted is not None:
        state = _next(state, None, x.b, predicted, values, True)
    return (_read(x, state, scale, values) if before is None else before), state


def _read(x: Rows, state: Tensor, scale: float, values: bool) -> Tensor:
    if scale == 1:
        return torch.bmm(x.q, state)
    if values:  # one call; what it would add counts for nothing
        return torch.baddbmm(x.v, x.q, state, beta=0, alpha=scale)
    return torch.bmm(x.q * scale, state)


def _predicted(x: Rows, state: Tensor, decay: Tensor | None) -> Tensor | None:
    """What the state, faded by ``decay``, holds for the key that reads it."""
    reader = x.a if x.erase is None else x.k
    if reader is None:
        return None
    if decay is None:
        return torch.bmm(reader, state)
    if decay.shape[2] > 1:
        return torch.bmm(reader * decay, state)
    return torch.bmm(reader, state) * decay


def _written(x: Rows, predicted: Tensor | None) -> Tensor:
    """What goes into the state with k: write v, less erase times the prediction, or plus the prediction of a."""
    if x.erase is not None and x.erase is x.write:
        assert predicted is not None
        return (x.v - predicted) * x.write
    written = x.v if x.write is None else x.write * x.v
    if predicted is None or x.b is not None:
        return written
    return written + predicted if x.erase is None else torch.addcmul(written, x.erase, predicted, value=-1)


def _next(
    state: Tensor, decay: Tensor | None, column: Tensor, row: Tensor, values: bool, own: bool
) -> Tensor:
    """decay state + column^T row: in the memory of the state, or in one pass over new memory and one over both."""
    column = column.mT
    if decay is None:
        return state.addcmul_(column, row) if values and own else torch.addcmul(state, column, row)
    if decay.shape[2] > 1:
        decay = decay.mT
    if not values:
        return torch.addcmul(column * row, state, decay)
    return state.mul_(decay).addcmul_(column, row) if own else (column * row).addcmul_(state, decay)


def _only_values() -> bool:
    return not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
