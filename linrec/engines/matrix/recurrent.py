"""The definition of the matrix recurrence, token by token, each in as few torch calls as the algebra allows.

In the letters of :mod:`linrec.engines.matrix.chunk`, of a chunk of one token: ``h`` is the state, ``z`` the prediction
that a reads from it, ``v_new`` what is written with k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from linrec.donation import taken
from linrec.engines.matrix.terms import MatrixTerms
from linrec.rule import Call


class Tokens(NamedTuple):
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

    def at(self, t: int) -> Tokens:
        """Token t of everything that has a time axis."""
        *timed, bonus = self
        return Tokens._make([*(None if x is None else x[:, t : t + 1] for x in timed), bonus])


def step(terms: MatrixTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """One token; ``state`` is ``[B, HV, K, V]``. Returns (o ``[B, 1, HV, V]``, the next state)."""
    batch, _, heads, width = terms.v.shape
    shape, values = state.shape, _only_values()
    own = values and taken(state)
    h = state.reshape(batch * heads, shape[2], shape[3])
    o, h = one_token(to_tokens(terms), h, terms, call.scale, values, own)
    return terms.skipped(o.reshape(batch, 1, heads, width)), h.view(shape)


def recurrent(terms: MatrixTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Token after token; ``state`` is ``[B, HV, K, V]``. Returns (o ``[B, T, HV, V]``, the final state)."""
    batch, length, heads, _ = terms.v.shape
    if length == 1:
        return step(terms, state, call)
    values = _only_values()
    own = values and length > 0 and taken(state)
    x, shape = to_tokens(terms), state.shape
    h = state.reshape(batch * heads, shape[2], shape[3])
    x, outputs = x._replace(q=x.q * call.scale), []
    for t in range(length):
        o, h = one_token(x.at(t), h, terms, 1, values, own or t > 0)
        outputs.append(o)
    o = torch.cat(outputs, dim=1) if outputs else torch.zeros_like(x.v)
    o = o.reshape(batch, heads, length, o.shape[2]).transpose(1, 2)
    return terms.skipped(o), h.reshape(shape)


def to_tokens(terms: MatrixTerms) -> Tokens:
    """From the time-first layout of a call; heads that several value heads share are repeated, as views if they can."""
    t, dtype = terms, terms.accumulator
    batch, length, heads, _ = t.v.shape

    def heads_first(x: Tensor) -> Tensor:
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
    write = None if write is None else heads_first(write)
    erase = write if same else None if erase is None else heads_first(erase)
    if bonus is not None:
        bonus = bonus.to(dtype).expand(batch, -1, -1).flatten(0, 1)[:, None]
    q, k, v = heads_first(t.q), heads_first(t.k), heads_first(t.v)
    g, a, b = [None if x is None else heads_first(x) for x in (t.g, t.a, t.b)]
    return Tokens(q, k, v, g, a, b, write, erase, bonus)


def one_token(
    x: Tokens, h: Tensor, terms: MatrixTerms, scale: float, values: bool, own: bool
) -> tuple[Tensor, Tensor]:
    """One step of ``[N, K, V]``; the time axes have length one.

    ``values``: nothing but values counts, so that what is made here may be overwritten; ``own``: the state given too.
    """
    decay = None if x.g is None else x.g.exp()
    before = _read(x, h, scale, values) if terms.readout == "pre" else None
    z = _predicted(x, h, decay if terms.predict == "decayed" else None)
    v_new = _written(x, z)
    if before is not None and x.bonus is not None:
        now = (x.q * x.bonus * x.k).sum(-1, keepdim=True) * scale
        before = before + now * (x.v if x.write is None else x.write * x.v)
    h = _next(h, decay, x.k, v_new, values, own)
    if x.b is not None and z is not None:
        h = _next(h, None, x.b, z, values, True)
    return (_read(x, h, scale, values) if before is None else before), h


def _read(x: Tokens, h: Tensor, scale: float, values: bool) -> Tensor:
    """scale q h."""
    if scale == 1:
        return torch.bmm(x.q, h)
    if values:  # one call; what it would add counts for nothing
        return torch.baddbmm(x.v, x.q, h, beta=0, alpha=scale)
    return torch.bmm(x.q * scale, h)


def _predicted(x: Tokens, h: Tensor, decay: Tensor | None) -> Tensor | None:
    """z = a (decay h), or k (decay h) where a is -erase k."""
    a = x.a if x.erase is None else x.k
    if a is None:
        return None
    if decay is None:
        return torch.bmm(a, h)
    if decay.shape[2] > 1:
        return torch.bmm(a * decay, h)
    return torch.bmm(a, h) * decay


def _written(x: Tokens, z: Tensor | None) -> Tensor:
    """v_new: write v, less erase times the prediction, or plus the prediction of a."""
    if x.erase is not None and x.erase is x.write:
        assert z is not None
        return (x.v - z) * x.write
    v = x.v if x.write is None else x.write * x.v
    if z is None or x.b is not None:
        return v
    return v + z if x.erase is None else torch.addcmul(v, x.erase, z, value=-1)


def _next(h: Tensor, decay: Tensor | None, k: Tensor, v: Tensor, values: bool, own: bool) -> Tensor:
    """decay h + k^T v: in the memory of h, or in one pass over new memory and one over both."""
    k = k.mT
    if decay is None:
        return h.addcmul_(k, v) if values and own else torch.addcmul(h, k, v)
    if decay.shape[2] > 1:
        decay = decay.mT
    if not values:
        return torch.addcmul(k * v, h, decay)
    return h.mul_(decay).addcmul_(k, v) if own else (k * v).addcmul_(h, decay)


def _only_values() -> bool:
    return not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
