"""Chunks of the recurrences with one decay a head: additive, or delta with a = -erase k.

.. code-block:: text

    x = (I + L)^-1 (write v - erase e^{G_a} (k S)),   L = erase (k k^T * D_a) below the diagonal
    (additive: x = write v)
    o = scale (e^{G_q} (q S) + (q k^T * D_q) x),      S' = e^{G_C} S + k^T (e^{G_C - G} x),   D_ij = e^{G_i - G_j}

Decays and strengths are numbers a row, so they scale the results of products and never a copy of an argument; what a
chunk needs is written into memory that the next chunk uses again. With z = e^{G_a} (k S) + (k k^T * D_a) x, which is
what the delta rule predicts, the adjoint is

.. code-block:: text

    dx = (scale q k^T * D_q)^T do + e^{G_C - G} (k dS'),   dr = (I + L)^-T dx,   dv = write dr,   dwrite = v . dr
    derase = -dr . z,   y = -erase dr,   N = scale (do x^T) * D_q,   M = (y x^T) * D_a
    dq = scale e^{G_q} (do S^T) + N k,          dk = [e^{G_a} (y S^T) + M k] + [N^T q + M^T k + e^{G_C - G} (x dS'^T)]
    dS = e^{G_C} dS' + q^T (scale e^{G_q} do) + k^T (e^{G_a} y)
    dG = q . dq + k . (first bracket) - k . (second bracket),   + S' . dS' at the last row
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from linrec.engines.matrix.chunk import cumulative_decay
from linrec.engines.matrix.plan import Memory, Plan, Span, Tensors, decay_gradient, rows
from linrec.engines.scans import exact
from linrec.engines.triangular import solve_unit_lower, solve_unit_lower_transposed

NAMES = ("q", "k", "v", "g", "write", "erase")


class Rows(NamedTuple):
    """Numbers a row, ``[N, C, 1]``, N = B HV, and the decays between rows, ``[N, C, C]`` (D_a holds D_q's memory
    where they agree below the diagonal)."""

    at_q: Tensor
    at_a: Tensor
    to_end: Tensor
    whole: Tensor
    between_q: Tensor
    between_a: Tensor
    write: Tensor | None
    erase: Tensor | None


class Chunk(NamedTuple):
    """Heads first: q, k ``[N, C, K]``, v ``[N, C, V]``; ``repeat`` neighbouring rows of N share q and k."""

    q: Tensor
    k: Tensor
    v: Tensor
    repeat: int
    row: Rows


def load(tensors: Tensors, span: Span, plan: Plan, memory: Memory, dtype: torch.dtype) -> Chunk:
    """Cut one chunk out of the arguments."""
    (q, k, v), numbers = ([tensors[name] for name in part] for part in (NAMES[:3], NAMES[3:]))
    assert q is not None
    assert k is not None
    assert v is not None
    repeat = v.shape[2] // k.shape[2]
    q, k, v = (rows(x, *span, v.shape[2] // x.shape[2]).to(dtype) for x in (q, k, v))
    g, write, erase = (
        None if x is None else rows(x[..., None], *span).to(dtype).contiguous() for x in numbers
    )
    return Chunk(q, k, v, repeat, _rows(g, write, erase, q, plan, memory))


def _rows(
    g: Tensor | None, write: Tensor | None, erase: Tensor | None, like: Tensor, plan: Plan, memory: Memory
) -> Rows:
    total = cumulative_decay(like.new_zeros(*like.shape[:2], 1) if g is None else g)
    before = torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1]], dim=1)
    at_q, at_a = (total if now else before for now in (plan.reads_now, plan.predicts_now))
    between_q = _between(at_q, total, plan.reads_now, like, memory, "between_q")
    same = erase is None or at_a is at_q
    between_a = between_q if same else _between(at_a, total, False, like, memory, "between_a")
    last = total[:, -1:]
    from_q, from_a, to_end, whole = (t.exp().to(like.dtype) for t in (at_q, at_a, last - total, last))
    return Rows(from_q, from_a, to_end, whole, between_q, between_a, write, erase)


def _between(at: Tensor, total: Tensor, diagonal: bool, like: Tensor, memory: Memory, name: str) -> Tensor:
    """e^{at_i - total_j}, zero above the diagonal: the exponent is masked, exp of it could overflow."""
    size = total.shape[1]
    exponent = memory.take(name + "_exact", like, total.shape[0], size, size, dtype=total.dtype)
    torch.sub(at, total.mT, out=exponent)
    decay = memory.take(name, like, total.shape[0], size, size)
    decay.copy_(exponent)
    hidden = memory.get(f"mask {diagonal}")
    if hidden is None or hidden.shape[0] != size:
        hidden = like.new_full((size, size), -torch.inf).triu(1 if diagonal else 0)
        memory[f"mask {diagonal}"] = hidden
    return decay.add_(hidden).exp_()


def scores(
    x: Tensor, y: Tensor, decay: Tensor, name: str, memory: Memory, repeat: int, factor: float
) -> Tensor:
    """factor (x y^T) * decay ``[N, C, C]``; heads that share x and y share the product."""
    size = x.shape[1]
    out = memory.take(name, x, decay.shape[0], size, size)
    if repeat == 1:
        torch.bmm(x, y.mT, out=out).mul_(decay)
    else:
        shared = torch.bmm(x[::repeat], y[::repeat].mT)[:, None]
        torch.mul(shared, decay.unflatten(0, (-1, repeat)), out=out.unflatten(0, (-1, repeat)))
    return out if factor == 1 else out.mul_(factor)


class Solved(NamedTuple):
    """What forward and adjoint share: scale (q k^T * D_q), k k^T * D_a, the system L, k S and x."""

    scores: Tensor
    gram: Tensor | None
    system: Tensor | None
    seen: Tensor | None
    written: Tensor


def solve(c: Chunk, state: Tensor, plan: Plan, memory: Memory) -> Solved:
    """The scores of the chunk and what it writes."""
    row = c.row
    attention = scores(c.q, c.k, row.between_q, "scores", memory, c.repeat, plan.scale)
    written = memory.take("written", c.v, *c.v.shape)
    if row.write is None:
        written.copy_(c.v)
    else:
        torch.mul(c.v, row.write, out=written)
    if row.erase is None:
        return Solved(attention, None, None, None, written)
    gram = scores(c.k, c.k, row.between_a, "gram", memory, c.repeat, 1.0)
    system = torch.mul(gram, -row.erase, out=memory.take("system", gram, *gram.shape))
    seen = torch.bmm(c.k, state, out=memory.take("seen", c.v, *c.v.shape))
    seen.mul_(row.at_a)
    return Solved(
        attention, gram, system, seen, solve_unit_lower(system, written.addcmul_(seen, row.erase, value=-1))
    )


def read_and_write(
    c: Chunk, s: Solved, state: Tensor, new_state: Tensor, plan: Plan, memory: Memory
) -> Tensor:
    """Output of a chunk; fills the exit state ``new_state``."""
    o = torch.bmm(c.q, state, out=memory.take("output", c.v, *c.v.shape))
    o.mul_(c.row.at_q * plan.scale).baddbmm_(s.scores, s.written)
    kept = torch.mul(s.written, c.row.to_end, out=memory.take("kept", c.v, *c.v.shape))
    torch.mul(state, c.row.whole, out=new_state).baddbmm_(c.k.mT, kept)
    return o


def forward(
    plan: Plan, memory: Memory, tensors: Tensors, span: Span, state: Tensor, new_state: Tensor
) -> Tensor:
    """See :class:`linrec.engines.matrix.scan.Lane`."""
    c = load(tensors, span, plan, memory, state.dtype)
    return read_and_write(c, solve(c, state, plan, memory), state, new_state, plan, memory)


def backward(
    plan: Plan,
    memory: Memory,
    tensors: Tensors,
    span: Span,
    states: tuple[Tensor, Tensor],
    do: Tensor,
    dexit: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    """See :class:`linrec.engines.matrix.scan.Lane`."""
    c = load(tensors, span, plan, memory, do.dtype)
    return adjoint(c, solve(c, states[0], plan, memory), states, do, dexit, plan, memory)


def adjoint(
    c: Chunk, s: Solved, states: tuple[Tensor, Tensor], do: Tensor, dexit: Tensor, plan: Plan, memory: Memory
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of one chunk's tensors and of its entry state."""
    entry, leaving = states
    row = c.row
    dx = torch.bmm(c.k, dexit, out=memory.take("dx", c.v, *c.v.shape))
    dx.mul_(row.to_end).baddbmm_(s.scores.mT, do)
    asked = torch.mul(do, row.at_q * plan.scale, out=memory.take("asked", c.v, *c.v.shape))
    dentry = torch.mul(dexit, row.whole).baddbmm_(c.q.mT, asked)
    dq = torch.bmm(asked, entry.mT, out=memory.take("dq", c.q, *c.q.shape))
    dk = torch.bmm(s.written, dexit.mT, out=memory.take("dk", c.k, *c.k.shape))
    dk.mul_(row.to_end)
    weighted = torch.bmm(do, s.written.mT, out=memory.take("weighted", s.scores, *s.scores.shape))
    weighted.mul_(row.between_q).mul_(plan.scale)
    dq.baddbmm_(weighted, c.k)
    dk.baddbmm_(weighted.mT, c.q)
    grads: dict[str, Tensor] = {"q": dq}
    reads: Tensor | None = None
    dright = dx
    if row.erase is not None and s.system is not None and s.gram is not None and s.seen is not None:
        dright = solve_unit_lower_transposed(s.system, dx)
        predicted = s.seen.baddbmm_(s.gram.tril(-1), s.written)
        grads["erase"] = _dot(dright, predicted, memory).neg_()
        y = torch.mul(dright, -row.erase, out=memory.take("y", c.v, *c.v.shape))
        torch.bmm(y, s.written.mT, out=weighted).mul_(row.between_a)
        weighted.tril_(-1)
        y.mul_(row.at_a)
        reads = torch.bmm(y, entry.mT, out=memory.take("reads", c.k, *c.k.shape))
        reads.baddbmm_(weighted, c.k)
        dk.baddbmm_(weighted.mT, c.k)
        dentry.baddbmm_(c.k.mT, y)
    grads["g"] = _decay_adjoint(c, dq, dk, reads, (leaving, dexit), plan, memory)
    grads["k"] = dk if reads is None else dk.add_(reads)
    grads["v"] = dright if row.write is None else dright * row.write
    if row.write is not None:
        grads["write"] = _dot(dright, c.v, memory)
    return grads, dentry


def _dot(x: Tensor, y: Tensor, memory: Memory) -> Tensor:
    """Inner products of the rows, ``[N, C, 1]``."""
    return torch.mul(x, y, out=memory.take(f"product {x.shape[2]}", x, *x.shape)).sum(-1, keepdim=True)


def _decay_adjoint(
    c: Chunk,
    dq: Tensor,
    dk: Tensor,
    reads: Tensor | None,
    end: tuple[Tensor, Tensor],
    plan: Plan,
    memory: Memory,
) -> Tensor:
    """Gradient of the log-decays ``[N, C, 1]``."""
    readers = [(_dot(c.q, dq, memory), plan.reads_now)]
    if reads is not None:
        readers.append((_dot(c.k, reads, memory), plan.predicts_now))
    leaving, dexit = end
    at_end = torch.mul(leaving, dexit, out=memory.take("end", leaving, *leaving.shape)).sum((1, 2))
    return decay_gradient(exact(_dot(c.k, dk, memory)), readers, at_end[:, None]).to(dk.dtype)
