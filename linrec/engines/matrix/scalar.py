"""Chunks of the recurrences with one decay a head: additive, or delta with a = -erase k.

.. code-block:: text

    x = (I + L)^-1 (write v - erase e^{G_a} (k S)),   L = erase (k k^T * D_a) below the diagonal
    (additive: x = write v)
    o = scale (e^{G_q} (q S) + (q k^T * D_q) x) + skip v
    S' = e^{G_C} S + k^T (e^{G_C - G} x),   D_ij = e^{G_i - G_j}

Decays and strengths are numbers a row, so they scale the results of products and never a copy of an argument; what a
chunk needs is written into memory that the next chunk uses again. The adjoint is

.. code-block:: text

    dx = (scale q k^T * D_q)^T do + e^{G_C - G} (k dS'),   dr = (I + L)^-T dx,   dv = write dr + skip do
    dwrite = v . dr,   dskip = sum of v . do
    y = -erase dr,   N = scale (do x^T) * D_q,   M = (y x^T) * D_a below the diagonal
    dq = scale e^{G_q} (do S^T) + N k,   dk = e^{G_C - G} (x dS'^T) + N^T q + e^{G_a} (y S^T) + (M + M^T) k
    derase = -dr . (e^{G_a} (k S)) - rows of (k k^T * D_a) * (dr x^T)
    dS = e^{G_C} dS' + q^T (scale e^{G_q} do) + k^T (e^{G_a} y)

and the gradient of the decays needs no product of its own: everything is linear in what it scales, so

.. code-block:: text

    dG = q . dq [row of G_q] + erase derase [row of G_a] - erase derase - write dwrite,   + S' . dS' at the end
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.matrix.numbers import Numbers, between, by_chunk, numbers, over_time
from linrec.engines.matrix.plan import Memory, Plan, Span, Tensors, decay_gradient, rows
from linrec.engines.scans import exact
from linrec.engines.triangular import BlockSystems


class Chunk(NamedTuple):
    """Heads first: q, k ``[N, C, K]``, v ``[N, C, V]``; ``repeat`` neighbouring rows of N share q and k."""

    q: Tensor
    k: Tensor
    v: Tensor
    repeat: int
    row: Numbers


class Solved(NamedTuple):
    """What forward and adjoint share: scale (q k^T * D_q), D_q; k k^T * D_a, D_a, I + L, e^{G_a} (k S); x."""

    scores: Tensor
    decay_q: Tensor
    gram: Tensor | None
    decay_a: Tensor | None
    systems: BlockSystems | None
    seen: Tensor | None
    written: Tensor


class ScalarLane:
    """See :class:`linrec.engines.matrix.scan.Lane`."""

    NAMES = ("q", "k", "v", "g", "write", "erase", "skip")

    def __init__(self, plan: Plan, tensors: Tensors, dtype: torch.dtype):
        v = tensors["v"]
        assert v is not None
        self.plan = plan = plan._replace(chunk=min(plan.chunk, max(v.shape[1], 1)))
        self.tensors, self.dtype = tensors, dtype
        self.memory = Memory()
        self.rows = numbers(plan, tensors, dtype)
        skip = tensors["skip"]
        self.skip = None if skip is None else skip.to(dtype).repeat(v.shape[0])[:, None, None]
        self.late: list[dict[str, Tensor]] = []

    def load(self, number: int, span: Span) -> Chunk:
        """Cut one chunk out of the arguments."""
        q, k, v = (self.tensors[name] for name in self.NAMES[:3])
        assert q is not None and k is not None and v is not None
        repeat = v.shape[2] // k.shape[2]
        q, k, v = (rows(x, *span, v.shape[2] // x.shape[2]).to(self.dtype) for x in (q, k, v))
        return Chunk(q, k, v, repeat, self.rows[number])

    def forward(self, number: int, span: Span, state: Tensor, new_state: Tensor) -> Tensor:
        """The chunk's output ``[N, C, V]``; fills ``new_state``."""
        c, memory = self.load(number, span), self.memory
        s = self.solve(c, state)
        o = torch.bmm(c.q, state, out=memory.take("output", c.v, *c.v.shape))
        o.mul_(c.row.at_q).baddbmm_(s.scores, s.written)
        if self.skip is not None:
            o.addcmul_(c.v, self.skip)
        kept = torch.mul(s.written, c.row.to_end, out=memory.take("kept", c.v, *c.v.shape))
        torch.mul(state, c.row.whole, out=new_state).baddbmm_(c.k.mT, kept)
        return o

    def solve(self, c: Chunk, state: Tensor) -> Solved:
        """The scores of the chunk and what it writes."""
        row, memory, plan = c.row, self.memory, self.plan
        decay_q = between("q", row, plan.reads_now, memory)
        scores = _scores(c.q, c.k, decay_q, "scores", c.repeat, memory)
        if plan.scale != 1:
            scores.mul_(plan.scale)
        right = memory.take("right", c.v, *c.v.shape)
        if row.write is None:
            right.copy_(c.v)
        else:
            torch.mul(c.v, row.write, out=right)
        if row.erase is None:
            return Solved(scores, decay_q, None, None, None, None, right)
        same = plan.reads_now and plan.predicts_now
        decay_a = decay_q if same else between("a", row, False, memory)
        gram = _scores(c.k, c.k, decay_a, "gram", c.repeat, memory)
        seen = torch.bmm(c.k, state, out=memory.take("seen", c.v, *c.v.shape)).mul_(row.at_a)
        right.addcmul_(seen, row.erase, value=-1)
        systems = self._systems(gram, row.erase)
        written = systems.solve(right, memory.take("written", c.v, *c.v.shape))
        return Solved(scores, decay_q, gram, decay_a, systems, seen, written)

    def _systems(self, gram: Tensor, erase: Tensor) -> BlockSystems:
        """I + erase gram; only what is below the diagonal of ``gram`` counts."""
        systems = self.memory.systems(gram, *gram.shape[:2])
        torch.mul(gram, -erase, out=systems.matrices).tril_(-1)
        systems.invert()
        return systems

    def backward(
        self, number: int, span: Span, states: tuple[Tensor, Tensor], do: Tensor, dexit: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients of the chunk's q, k, v and of its entry state; those of its numbers wait for :meth:`numbers`."""
        c, memory, plan = self.load(number, span), self.memory, self.plan
        row, entry = c.row, states[0]
        s = self.solve(c, entry)
        dx = torch.bmm(c.k, dexit, out=memory.take("dx", c.v, *c.v.shape))
        dx.mul_(row.to_end).baddbmm_(s.scores.mT, do)
        asked = torch.mul(do, row.at_q, out=memory.take("asked", c.v, *c.v.shape))
        dentry = memory.take(f"dentry {number % 2}", entry, *entry.shape)
        torch.mul(dexit, row.whole, out=dentry).baddbmm_(c.q.mT, asked)
        dq = torch.bmm(asked, entry.mT, out=memory.take("dq", c.q, *c.q.shape))
        dk = torch.bmm(s.written, dexit.mT, out=memory.take("dk", c.k, *c.k.shape)).mul_(row.to_end)
        paired = torch.bmm(do, s.written.mT, out=memory.take("paired", s.scores, *s.scores.shape))
        late = {
            "at_end": self._dot(states[1].flatten(1)[:, None], dexit.flatten(1)[:, None]),
            "read": self._dot(c.q, dq) + self._dot(s.scores, paired),
        }
        paired.mul_(s.decay_q)
        if plan.scale != 1:
            paired.mul_(plan.scale)
        dright = dx
        symmetric: Tensor | None = None
        if row.erase is not None:
            dright, symmetric = self._erased(c, s, dx, late)
            y = torch.mul(dright, -row.erase * row.at_a, out=dx)
            dk.baddbmm_(y, entry.mT)
            dentry.baddbmm_(c.k.mT, y)
        grads = self._through_scores(c, dq, dk, paired, symmetric)
        late["write"] = self._dot(c.v, dright)
        grads["v"] = dright if row.write is None else dright.mul_(row.write)
        if self.skip is not None:
            late["skip"] = self._dot(do, c.v)
            grads["v"].addcmul_(do, self.skip)
        self.late.append(late)
        return grads, dentry

    def _erased(self, c: Chunk, s: Solved, dx: Tensor, late: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """dr and M + M^T, and the gradient of the strengths that erase."""
        memory, erase = self.memory, c.row.erase
        assert erase is not None and s.systems is not None and s.gram is not None
        assert s.decay_a is not None and s.seen is not None
        dright = s.systems.solve_transposed(dx, memory.take("dright", c.v, *c.v.shape))
        paired = torch.bmm(dright, s.written.mT, out=memory.take("paired_a", s.gram, *s.gram.shape)).tril_(-1)
        late["erase"] = -(self._dot(dright, s.seen) + self._dot(s.gram, paired))
        weighted = paired.mul_(s.decay_a).mul_(-erase)
        return dright, torch.add(
            weighted, weighted.mT, out=memory.take("symmetric", weighted, *weighted.shape)
        )

    def _through_scores(
        self, c: Chunk, dq: Tensor, dk: Tensor, paired: Tensor, symmetric: Tensor | None
    ) -> dict[str, Tensor]:
        """dq + N k and dk + N^T q + (M + M^T) k, summed over value heads that share q and k."""
        q, k = c.q, c.k
        if c.repeat > 1:
            dq, dk, paired = (x.unflatten(0, (-1, c.repeat)).sum(1) for x in (dq, dk, paired))
            q, k = q[:: c.repeat], k[:: c.repeat]
            symmetric = None if symmetric is None else symmetric.unflatten(0, (-1, c.repeat)).sum(1)
        dq.baddbmm_(paired, k)
        dk.baddbmm_(paired.mT, q)
        if symmetric is not None:
            dk.baddbmm_(symmetric, k)
        return {"q": dq, "k": dk}

    def _dot(self, x: Tensor, y: Tensor) -> Tensor:
        """Inner products of the rows, ``[N, C, 1]``."""
        product = torch.mul(x, y, out=self.memory.take(f"product {y.shape[1:]}", y, *y.shape))
        return product.sum(-1, keepdim=True)

    def numbers(self) -> dict[str, Tensor]:
        """Gradients of log-decays and strengths ``[B, T, HV]``, once every chunk has been through :meth:`backward`."""
        v, plan = self.tensors["v"], self.plan
        assert v is not None
        if not self.late:
            return {}
        found = {name: _joined([x[name] for x in reversed(self.late)]) for name in self.late[0]}
        at_end = found.pop("at_end")[:, 0]
        write, erase = (by_chunk(self.tensors[name], plan.chunk) for name in ("write", "erase"))
        wrote = exact(found["write"] if write is None else found["write"] * write.flatten(0, 1))
        readers = [(exact(found.pop("read")), plan.reads_now)]
        if erase is not None:
            erased = exact(found["erase"] * erase.flatten(0, 1))
            readers.append((erased, plan.predicts_now))
            wrote = wrote + erased
        found["g"] = decay_gradient(wrote, readers, at_end).to(self.dtype)
        chunks = len(self.late)
        grads = {name: over_time(x.unflatten(0, (chunks, -1)), *v.shape[:2]) for name, x in found.items()}
        if "skip" in grads:
            grads["skip"] = grads["skip"].sum((0, 1))
        return grads


def _scores(x: Tensor, y: Tensor, decay: Tensor, name: str, repeat: int, memory: Memory) -> Tensor:
    """(x y^T) * decay ``[N, C, C]``; heads that share x and y share the product."""
    out = memory.take(name, x, *decay.shape)
    if repeat == 1:
        return torch.bmm(x, y.mT, out=out).mul_(decay)
    shared = torch.bmm(x[::repeat], y[::repeat].mT)[:, None]
    torch.mul(shared, decay.unflatten(0, (-1, repeat)), out=out.unflatten(0, (-1, repeat)))
    return out


def _joined(parts: list[Tensor]) -> Tensor:
    """The numbers ``[N, C, 1]`` of all chunks as ``[chunks N, C, 1]``, the last filled up with zeros."""
    size = parts[0].shape[1]
    return torch.cat([F.pad(x, (0, 0, 0, size - x.shape[1])) for x in parts])
