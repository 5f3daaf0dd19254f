"""Chunks of the recurrences with one decay a head: additive, or delta with a = -erase k.

.. code-block:: text

    v_new = (I - A_ak)^-1 (write v - erase e^{g_a} (k h)),   A_ak = -erase (k k^T * D_a) below the diagonal
    (additive: v_new = write v)
    o = scale (e^{g_q} (q h) + (q k^T * D_q) v_new) + skip v
    h_next = e^{g_C} h + k^T (e^{g_C - g} v_new),   D_ij = e^{g_i - g_j}

Decays and strengths are one factor a row, so they scale the results of products and never a copy of an argument. The
rows of k and of q read together, R = [k; q]: one product with h, one with k^T. What a chunk needs is written into
memory that the next chunk uses again (:mod:`linrec.engines.matrix.buffers`). The adjoint is

.. code-block:: text

    dv_new = (scale q k^T * D_q)^T do + e^{g_C - g} (k dh_next),   dr = (I - A_ak)^-T dv_new,   dv = write dr + skip do
    dwrite = v . dr,   dskip = sum of v . do
    Y = [-erase e^{g_a} dr; scale e^{g_q} do],   M = [-erase (dr v_new^T) * D_a; scale (do v_new^T) * D_q]
    dR = Y h^T + M k,   dk = dR_k + (e^{g_C - g} v_new) dh_next^T + M^T R,   dq = dR_q
    derase = -dr . (e^{g_a} (k h)) - rows of (k k^T * D_a) * (dr v_new^T)
    dh = e^{g_C} dh_next + R^T Y

and the gradient of the decays is made (:mod:`linrec.engines.matrix.decay_gradient`) of

.. code-block:: text

    W = (-erase (k k^T * D_a)) * (dr v_new^T) [rows of g_a] + (scale q k^T * D_q) * (do v_new^T) [rows of g_q]
    seen = -erase dr . (e^{g_a} (k h)) [g_a], scale do . (e^{g_q} (q h)) [g_q]
    kept = v_new . (e^{g_C - g} (k dh_next)),   passed = h . e^{g_C} dh_next
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from linrec.engines.matrix.buffers import Backward, Forward, Sizes
from linrec.engines.matrix.gate_gradients import joined
from linrec.engines.matrix.gates import Gates, between, chunk_gates, over_time
from linrec.engines.matrix.plan import Plan, Span, Tensors
from linrec.engines.matrix.scan import chunkwise
from linrec.engines.matrix.terms import MatrixTerms
from linrec.rule import Call

OF_VALUES = ("v", "o", "dv", "do")


def chunkwise_scalar(terms: MatrixTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Output ``[B, T, HV, V]`` and final state ``[B, HV, K, V]`` of terms with one decay a head, or none."""
    return chunkwise(ScalarChunks, terms.floored(), state, call)


class ScalarChunks:
    """See :class:`linrec.engines.matrix.scan.ChunkMethod`; states are ``[B H, K, R V]``."""

    NAMES: ClassVar[tuple[str, ...]] = ("q", "k", "v", "g", "write", "erase", "skip")

    def __init__(self, plan: Plan, tensors: Tensors, dtype: torch.dtype):
        q, k, v = (tensors[name] for name in self.NAMES[:3])
        assert q is not None and k is not None and v is not None
        self.plan = plan = plan._replace(chunk=min(plan.chunk, max(v.shape[1], 1)))
        self.tensors, self.dtype, self.length = tensors, dtype, v.shape[1]
        batch, _, heads, width = k.shape
        self.erases = tensors["erase"] is not None
        self.alike = plan.reads_now == plan.predicts_now  # the decays that rows of k and rows of q see
        readers = 2 if self.erases else 1
        self.sizes = Sizes(batch, heads, v.shape[2] // heads, readers, plan.chunk, width, v.shape[3])
        self.cuts: dict[str, tuple[Tensor, ...]] = {}
        self.gates = chunk_gates(plan, tensors, dtype)
        self.scale = torch.full((1,), plan.scale, dtype=dtype, device=v.device)
        skip = tensors["skip"]
        self.skip = None if skip is None else skip.to(dtype).view(heads, -1, 1, 1)
        self.forwards: dict[int, Forward] = {}
        self.backwards: dict[int, Backward] = {}
        self.turns: Tensor | None = None
        self.late: list[dict[str, Tensor]] = []

    def inner(self, h: Tensor) -> Tensor:
        """``[B H, K, R V]``."""
        s = self.sizes
        heads = h.reshape(s.batch * s.heads, s.repeat, s.width, s.values)
        return heads.transpose(1, 2).reshape(-1, s.width, s.repeat * s.values)

    def outer(self, h: Tensor) -> Tensor:
        """``[B, HV, K, V]``."""
        s = self.sizes
        groups = h.view(s.batch, s.heads, s.width, s.repeat, s.values)
        return groups.transpose(2, 3).flatten(1, 2)

    def forward(self, index: int, span: Span, h: Tensor, h_next: Tensor, o: Tensor) -> None:
        """Fills ``h_next`` and the chunk's rows of the output."""
        gates, w, v = self._load(index, span)
        self._solve(w, gates, v, h)
        torch.bmm(w.A_qk, w.v_new, out=w.product)
        out = torch.addcmul(w.product_h, w.seen_q, gates.at_q, out=self._cut("o", o)[index])
        if self.skip is not None:
            out.addcmul_(v, self.skip)
        torch.mul(w.v_new_h, gates.to_end, out=w.kept_h)
        self._decayed(h, gates.whole, h_next).baddbmm_(w.keys.mT, w.kept)

    def _load(self, index: int, span: Span) -> tuple[Gates, Forward, Tensor]:
        """The gates of a chunk; its k and scaled q in memory, rows of k with those of q if both read; its v."""
        q, k, v = (self._cut(name, self.tensors[name])[index] for name in self.NAMES[:3])
        w = self._forward(span)
        w.keys_h.copy_(k)
        if self.erases:
            w.reads_a.copy_(w.keys_h)
        torch.mul(q, self.scale, out=w.reads_q)
        return self.gates[index], w, v.to(self.dtype)

    def _cut(self, name: str, x: Tensor | None) -> tuple[Tensor, ...]:
        """The chunks of a tensor, heads first: ``[B, H, C, K]``, or ``[B, H, R, C, V]`` of value heads."""
        if name not in self.cuts:
            assert x is not None
            if name in OF_VALUES:
                x = x.unflatten(2, (self.sizes.heads, -1))
            self.cuts[name] = x.movedim(1, -2).split(self.plan.chunk, -2)
        return self.cuts[name]

    def _solve(self, w: Forward, gates: Gates, v: Tensor, h: Tensor, asks: bool = True) -> Tensor:
        """The scores of the chunk and what it writes; what k sees in the state, and with ``asks`` q beside it."""
        between("q", gates, self.plan.reads_now, w.decay_q)
        if self.erases and not self.alike:
            between("a", gates, False, w.decay_a)
        torch.bmm(w.reads, w.keys.mT, out=w.grams)
        self._below(w.grams_h, w.own_grams)
        torch.mul(w.grams_h, w.decay_h, out=w.weights_h)
        seen_a = w.seen_a
        if asks:
            torch.bmm(w.reads, h, out=w.seen)
        elif self.erases:
            torch.bmm(w.keys, h, out=w.alone)
            seen_a = w.alone_h
        if gates.write is None:
            w.right_h.copy_(v)
        else:
            torch.mul(v, gates.write, out=w.right_h)
        if gates.erased is not None and gates.pull_a is not None:
            w.right_h.addcmul_(seen_a, gates.pull_a)
            torch.mul(w.gram_h, gates.erased, out=w.matrices_h)
            w.systems.invert()
            w.systems.solve(w.right, w.v_new)
        return seen_a

    def _below(self, pairs: Tensor, own: Tensor) -> None:
        """Zero where no row reads: what the recurrence does not have may be infinite. ``own``: of k, the diagonal."""
        pairs.tril_(0 if self.plan.reads_now else -1)
        if self.erases and self.plan.reads_now:
            own.zero_()

    def backward(
        self,
        index: int,
        span: Span,
        h: Tensor,
        do: Tensor,
        dh_next: Tensor,
        grads: dict[str, Tensor],
    ) -> Tensor:
        """``dh``; fills the chunk's rows of ``dq``, ``dk``, ``dv``. :meth:`gate_gradients` has the rest."""
        gates, w, v = self._load(index, span)
        do, d, wanted = self._cut("do", do)[index], self._backward(span), "g" in grads
        if self.turns is None:  # two take turns
            self.turns = dh_next.new_empty(2, *dh_next.shape)
        dh = self.turns[index % 2]
        seen_a = self._solve(w, gates, v, h, asks=wanted and self.sizes.repeat > 1)
        late = self._through_v_new(w, d, gates, do, dh_next, wanted)
        if self.erases:
            late["seen_a"] = _dot(d.dright_h, seen_a, d.value_dots)
        late |= self._crossing(w, d, gates, wanted)
        dq, dk, dv = (self._cut("d" + name, grads[name])[index] for name in self.NAMES[:3])
        if gates.write is None:
            dv.copy_(d.dright_h)
        else:
            late["write"] = _dot(v, d.dright_h, d.value_dots)
            torch.mul(d.dright_h, gates.write, out=dv)
        if self.skip is not None:
            late["skip"] = _dot(do, v, d.value_dots)
            dv.addcmul_(do, self.skip)
        late |= self._through_reads(w, d, gates, h, dh_next, wanted)
        torch.mul(d.dreads_q, self.plan.scale, out=dq)
        if self.erases:
            torch.add(d.dkeys_h, d.dreads_a, out=dk)
        else:
            dk.copy_(d.dkeys_h)
        if wanted:
            both = torch.mul(h, dh_next, out=dh).view(*self.sizes.of_heads[:2], *self._state_shape)
            late["passed"] = both.sum((2, 4))[..., None, None]
        self.late.append(late)
        return self._decayed(dh_next, gates.whole, dh).baddbmm_(w.reads.mT, d.pulls)

    def _through_v_new(
        self, w: Forward, d: Backward, gates: Gates, do: Tensor, dh_next: Tensor, wanted: bool
    ) -> dict[str, Tensor]:
        """dr, and what meets the scores; ``kept``, where it is wanted."""
        late = {}
        d.asked_h.copy_(do)
        torch.bmm(w.keys, dh_next, out=d.left)
        torch.mul(d.left_h, gates.to_end, out=d.dv_new_h)
        if wanted:
            late["kept"] = _dot(w.v_new_h, d.dv_new_h, d.value_dots)
        d.dv_new.baddbmm_(w.A_qk.mT, d.asked)
        if self.erases:
            w.systems.solve_transposed(d.dv_new, d.dright)
        torch.bmm(d.outer, w.v_new.mT, out=d.paired)
        self._below(d.paired_h, d.own_paired)
        return late

    def _crossing(self, w: Forward, d: Backward, gates: Gates, wanted: bool) -> dict[str, Tensor]:
        """Sums of W: over the rows of k, and for the decays, where they are wanted, over rows less columns."""
        if not (wanted or self.erases):
            return {}
        late = {}
        torch.mul(w.weights_h, d.paired_h, out=d.crossing)
        if gates.erased is not None:
            late["pairs_a"] = d.crossing_a.sum(-1, keepdim=True)
        if wanted and gates.erased is not None and self.alike:
            d.crossing_q.addcmul_(d.crossing_a, gates.erased)
        elif wanted and gates.erased is not None:
            late |= _sums("a", d.crossing_a.mul_(gates.erased), d.precise)
        if wanted:
            late |= _sums("q", d.crossing_q, d.precise)
        return late

    def _through_reads(
        self, w: Forward, d: Backward, gates: Gates, h: Tensor, dh_next: Tensor, wanted: bool
    ) -> dict[str, Tensor]:
        """Y, dR and what of dk comes through what was written; what q sees in the state, where it is wanted."""
        late = {}
        torch.mul(d.outer_h, gates.pull, out=d.pulls_h)
        torch.bmm(d.pulls, h.mT, out=d.dreads)
        if wanted and self.sizes.repeat > 1:
            late["seen_q"] = _dot(d.pulls_q, w.seen_q, d.value_dots)
        elif wanted:
            late["seen_q"] = _dot(w.reads_q, d.dreads_q, d.dkeys_h).unsqueeze(2)
        torch.mul(w.v_new_h, gates.to_end, out=w.kept_h)
        torch.bmm(w.kept, dh_next.mT, out=d.dkeys)
        d.paired_h.mul_(w.decay_h)
        if gates.erased is not None:
            d.paired_a.mul_(gates.erased)
        paired = d.paired
        if self.sizes.repeat > 1:
            paired = paired.unflatten(0, (-1, self.sizes.repeat)).sum(1)
        d.dreads.baddbmm_(paired, w.keys)
        d.dkeys.baddbmm_(paired.mT, w.reads)
        return late

    def _forward(self, span: Span) -> Forward:
        """Memory for chunks of this length."""
        length = span[1] - span[0]
        if length not in self.forwards:
            self.forwards[length] = Forward(self.sizes._replace(rows=length), self.scale, self.alike)
        return self.forwards[length]

    def _backward(self, span: Span) -> Backward:
        """The same for what the backward pass needs besides."""
        length = span[1] - span[0]
        if length not in self.backwards:
            self.backwards[length] = Backward(self.sizes._replace(rows=length), self.scale)
        return self.backwards[length]

    @property
    def _state_shape(self) -> tuple[int, int, int]:
        return self.sizes.width, self.sizes.repeat, self.sizes.values

    def _decayed(self, h: Tensor, whole: Tensor, out: Tensor) -> Tensor:
        shape = (-1, *self._state_shape)
        torch.mul(h.view(shape), whole, out=out.view(shape))
        return out

    def gate_gradients(self) -> dict[str, Tensor]:
        """Gradients of log-decays and strengths ``[B, T, HV]``, once every chunk has been through :meth:`backward`."""
        if not self.late:
            return {}
        found = joined(self.late[::-1], self.gates, self.plan)
        grads = {name: over_time(x.to(self.dtype), self.length) for name, x in found.items()}
        if "skip" in grads:
            grads["skip"] = grads["skip"].sum((0, 1))
        return grads


def _dot(x: Tensor, y: Tensor, memory: Tensor) -> Tensor:
    """Inner products of the rows, ``[..., C, 1]``."""
    return torch.mul(x, y, out=memory).sum(-1, keepdim=True)


def _sums(name: str, pairs: Tensor, precise: Tensor) -> dict[str, Tensor]:
    """Those of rows and of columns, ``[..., C, 1]``, in double precision."""
    precise.copy_(pairs)
    return {"rows_" + name: precise.sum(-1, keepdim=True), "columns_" + name: precise.sum(-2).unsqueeze(-1)}
