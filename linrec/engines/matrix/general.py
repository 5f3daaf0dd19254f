"""Chunks of every recurrence of the engine, decay by channel and the general path included, with their adjoint.

In the letters of :mod:`linrec.engines.matrix.chunk`:

.. code-block:: text

    r = v + (a e^{g_a}) h                      v_new = (I - A_ak)^-1 r
    o = (q e^{g_q}) h + A_qk v_new             h_next = e^{g_C} h + (k e^{g_C - g})^T v_new

    dv_new = A_qk^T do + (k e^{g_C - g}) dh_next          dr = (I - A_ak)^-T dv_new          dv = dr
    dA_qk = do v_new^T,  dA_ak = dr v_new^T
    dh = (q e^{g_q})^T do + (a e^{g_a})^T dr + e^{g_C} dh_next
    dg_t = q_t dq_t + a_t da_t - k_t dk_t - b_t db_t  (each at its own g),   + h_next dh_next at the last row

so the decay's gradient needs no gradient of any exponential. The general path has the same form with z beside v.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from linrec.engines.matrix.plan import Memory, Plan, Span, Tensors, decay_gradient, put_rows, rows
from linrec.engines.matrix.scan import chunkwise
from linrec.engines.matrix.scores import Decay
from linrec.engines.matrix.terms import MatrixTerms
from linrec.engines.numerics.decays import cumulative_decay
from linrec.engines.numerics.triangular import solve_unit_lower, solve_unit_lower_transposed
from linrec.rule import Call


def chunkwise_general(terms: MatrixTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Output ``[B, T, HV, V]`` and final state ``[B, HV, K, V]`` of any terms."""
    return chunkwise(GeneralChunks, by_channel(terms.floored()), state, call)


def by_channel(terms: MatrixTerms) -> MatrixTerms:
    """With a decay ``[B, T, HV, 1 or K]``."""
    g = terms.v.new_zeros(terms.v.shape[:3]) if terms.g is None else terms.g
    return replace(terms, g=g if g.dim() == 4 else g[..., None])


class ChunkInputs(NamedTuple):
    """One chunk, heads first ``[N, C, .]``: the tensors q, k, v, g, a, b, where a may be -erase k; the strengths."""

    tensors: dict[str, Tensor | None]
    k: Tensor
    v: Tensor
    g: Tensor
    write: Tensor | None
    erased: Tensor | None  # -erase


class GeneralChunks:
    """See :class:`linrec.engines.matrix.scan.ChunkMethod`; states are ``[N, K, V]``, N = B HV."""

    NAMES: ClassVar[tuple[str, ...]] = ("q", "k", "v", "g", "a", "b", "write", "erase")

    def __init__(self, plan: Plan, tensors: Tensors, dtype: torch.dtype):
        self.plan, self.tensors, self.dtype, self.memory = plan, tensors, dtype, Memory()
        batch, heads = self._batch
        whole = {name: x if x.dim() == 4 else x[..., None] for name, x in tensors.items() if x is not None}
        views = {name: x[0].transpose(0, 1) for name, x in whole.items() if batch == 1}
        self.heads_first = {name: x for name, x in views.items() if len(x) == heads}

    def inner(self, h: Tensor) -> Tensor:
        """``[N, K, V]``."""
        return h.flatten(0, 1)

    def outer(self, h: Tensor) -> Tensor:
        """``[B, HV, K, V]``."""
        return h.unflatten(0, self._batch)

    def gate_gradients(self) -> dict[str, Tensor]:
        """None: every chunk gives all of its own."""
        return {}

    def forward(self, index: int, span: Span, h: Tensor, h_next: Tensor, o: Tensor) -> None:
        """Fills ``h_next`` and the chunk's rows of the output."""
        self._forward(self._load(span), span, h, h_next, o)

    def _forward(self, c: ChunkInputs, span: Span, h: Tensor, h_next: Tensor, o: Tensor) -> None:
        exactly = self._exactly(c)
        solved = solve_chunk(exactly, h)
        put_rows(o, read_and_write(exactly, solved, h, h_next), *span)

    def backward(
        self,
        index: int,
        span: Span,
        states: tuple[Tensor, Tensor],
        do: Tensor,
        dh_next: Tensor,
        grads: dict[str, Tensor],
    ) -> Tensor:
        """The gradient of the entry state; fills the chunk's rows of ``grads``."""
        return self._backward(self._load(span), span, states, do, dh_next, grads)

    def _backward(
        self,
        c: ChunkInputs,
        span: Span,
        states: tuple[Tensor, Tensor],
        do: Tensor,
        dh_next: Tensor,
        grads: dict[str, Tensor],
    ) -> Tensor:
        exactly = self._exactly(c)
        solved = solve_chunk(exactly, states[0])
        part = rows(do, *span).contiguous()  # an expanded gradient would be multiplied matrix by matrix
        found, dh = chunk_adjoint(exactly, solved, *states, part, dh_next, self.plan)
        self._put(c, span, found, {}, grads)
        return dh

    @property
    def _batch(self) -> tuple[int, int]:
        v = self.tensors["v"]
        assert v is not None
        return v.shape[0], v.shape[2]

    def _load(self, span: Span) -> ChunkInputs:
        """Cut one chunk out of the arguments."""

        def cut(name: str) -> Tensor | None:
            x = self.tensors[name]
            if x is None or name in self.heads_first:
                return None if x is None else self.heads_first[name].narrow(1, span[0], span[1] - span[0])
            x = x if x.dim() == 4 else x[..., None]
            return rows(x, *span, self._batch[1] // x.shape[2])

        found = {name: cut(name) for name in self.NAMES}
        write, erase = (
            x if x is None else x.to(self.dtype) for x in (found.pop("write"), found.pop("erase"))
        )
        k, v, g = (found[name] for name in "kvg")
        assert k is not None and v is not None and g is not None
        erased = None if erase is None else -erase
        if erased is not None:
            found["a"] = torch.mul(k, erased, out=self.memory.rows_first("a", erased, *k.shape))
        return ChunkInputs(found, k, v, g, write, erased)

    def _exactly(self, c: ChunkInputs) -> Chunk:
        tensors = {name: None if x is None else x.to(self.dtype) for name, x in c.tensors.items()}
        if c.write is not None:
            tensors["v"] = c.v * c.write
        return chunk_of(tensors, self.plan)

    def _put(
        self,
        c: ChunkInputs,
        span: Span,
        found: dict[str, Tensor],
        places: dict[str, Tensor | None],
        grads: dict[str, Tensor],
    ) -> None:
        """Puts what was found in its place, with the gradients of the strengths, and through them of k and v."""
        if c.erased is not None:
            da = found.pop("a")
            found["erase"] = self._dot(c.k, da).neg_()
            found["k"].addcmul_(da, c.erased)
        if c.write is not None:
            dv, place = found["v"], places.get("v")
            found["write"] = self._dot(c.v, dv)
            found["v"] = torch.mul(dv, c.write, out=dv if place is None else place)
        for name, grad in found.items():
            if grad is not places.get(name):
                put_rows(grads[name], grad, *span)

    def _dot(self, x: Tensor, dx: Tensor) -> Tensor:
        """Inner products of the rows, ``[N, C, 1]``."""
        return torch.mul(x, dx, out=self.memory.rows_first(f"dot {x.shape[2]}", dx, *dx.shape)).sum(
            -1, keepdim=True
        )


class Chunk(NamedTuple):
    """One chunk, heads first: every tensor ``[N, C, .]`` with N = B HV; the scaled q; decays at q, at a, at k."""

    q: Tensor
    k: Tensor
    v: Tensor
    a: Tensor | None
    b: Tensor | None
    at_q: Decay
    at_a: Decay
    total: Tensor

    def to_end(self) -> Tensor:
        """e^{g_C - g}, ``[N, C, 1 or K]``."""
        return exp_as(self.total[:, -1:] - self.total, self.v)

    def whole(self) -> Tensor:
        """e^{g_C} as rows of the state, ``[N, 1 or K, 1]``."""
        return exp_as(self.total[:, -1:], self.v).mT


def exp_as(exponent: Tensor, like: Tensor) -> Tensor:
    """exp in the dtype of the data; exponents are kept in float64."""
    return exponent.to(like.dtype).exp_() if exponent.dtype != like.dtype else exponent.exp()


def chunk_of(tensors: Mapping[str, Tensor | None], plan: Plan) -> Chunk:
    """The chunk of q, k, v, g, a, b, heads first, g ``[N, C, 1 or K]``."""
    q, k, v, a, b, g = (tensors[n] for n in ("q", "k", "v", "a", "b", "g"))
    assert q is not None and k is not None and v is not None and g is not None
    total = cumulative_decay(g)
    before = torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1]], dim=1)
    at_q = Decay(total if plan.reads_now else before, total, plan.reads_now, v.dtype)
    at_a = Decay(total if plan.predicts_now else before, total, False, v.dtype)
    if plan.reads_now and plan.predicts_now:
        at_a.wider = at_q  # the same decays: their exponentials are needed once
    return Chunk(q * plan.scale, k, v, a, b, at_q, at_a, total)


class Solved(NamedTuple):
    """What forward and adjoint share in a chunk; ``extra`` is (A_qb, A_ak, z) of the general path."""

    scores: Tensor
    A_a: Tensor | None
    v_new: Tensor
    extra: tuple[Tensor, Tensor, Tensor] | None


def solve_chunk(c: Chunk, h: Tensor) -> Solved:
    """The scores of the chunk and what it writes into the state ``[N, K, V]``."""
    scores = c.at_q.scores(c.q, c.k)
    if c.a is None:
        return Solved(scores, None, c.v, None)
    right = torch.bmm(c.a * exp_as(c.at_a.at_x, c.a), h)
    if c.b is None:
        A_a = c.at_a.scores(c.a, c.k)
        return Solved(scores, A_a, solve_unit_lower(A_a, right.add_(c.v)), None)
    A_ak = c.at_a.scores(c.a, c.k)
    A_a = c.at_a.scores(c.a, c.b)
    z = solve_unit_lower(A_a, right.baddbmm_(A_ak, c.v))
    return Solved(scores, A_a, c.v, (c.at_q.scores(c.q, c.b), A_ak, z))


def read_and_write(c: Chunk, s: Solved, h: Tensor, h_next: Tensor) -> Tensor:
    """Output of a chunk; fills the exit state ``h_next``."""
    to_end = c.to_end()
    o = torch.bmm(c.q * exp_as(c.at_q.at_x, c.q), h).baddbmm_(s.scores, s.v_new)
    torch.mul(c.whole(), h, out=h_next).baddbmm_((c.k * to_end).mT, s.v_new)
    if c.b is not None and s.extra is not None:
        A_qb, _, z = s.extra
        o.baddbmm_(A_qb, z)
        h_next.baddbmm_((c.b * to_end).mT, z)
    return o


def chunk_adjoint(
    c: Chunk, s: Solved, h: Tensor, h_next: Tensor, do: Tensor, dh_next: Tensor, plan: Plan
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of one chunk's tensors and of its entry state, from those of its output and exit state."""
    to_end, decay_q = c.to_end(), exp_as(c.at_q.at_x, c.q)
    dh = torch.baddbmm(c.whole() * dh_next, (c.q * decay_q).mT, do)
    dq = torch.bmm(do, h.mT).mul_(decay_q)
    dk = torch.bmm(s.v_new, dh_next.mT).mul_(to_end)
    dv_new = torch.bmm(s.scores.mT, do).baddbmm_(c.k * to_end, dh_next)
    c.at_q.adjoint(torch.bmm(do, s.v_new.mT), c.q, c.k, dq, dk)
    grads = {"q": dq, "k": dk, "v": dv_new}
    if c.a is not None and s.A_a is not None:
        if c.b is None:
            grads["v"] = dright = solve_unit_lower_transposed(s.A_a, dv_new)
        else:
            dright = _general_adjoint(c, s, do, dh_next, grads)
        decay_a = exp_as(c.at_a.at_x, c.a)
        grads["a"] = torch.bmm(dright, h.mT).mul_(decay_a)
        c.at_a.adjoint(torch.bmm(dright, s.v_new.mT), c.a, c.k, grads["a"], dk)
        if c.b is not None and s.extra is not None:
            c.at_a.adjoint(torch.bmm(dright, s.extra[2].mT), c.a, c.b, grads["a"], grads["b"])
        dh.baddbmm_((c.a * decay_a).mT, dright)
    grads["g"] = decay_adjoint(c, grads, (h_next * dh_next).sum(-1), plan)
    dq.mul_(plan.scale)
    return grads, dh


def _general_adjoint(c: Chunk, s: Solved, do: Tensor, dh_next: Tensor, grads: dict[str, Tensor]) -> Tensor:
    """What the prediction z adds to the gradients in the general path; returns that of the system's right side."""
    assert s.A_a is not None and s.extra is not None and c.b is not None
    A_qb, A_ak, z = s.extra
    to_end = c.to_end()
    dz = torch.bmm(A_qb.mT, do).baddbmm_(c.b * to_end, dh_next)
    dright = solve_unit_lower_transposed(s.A_a, dz)
    grads["b"] = torch.bmm(z, dh_next.mT).mul_(to_end)
    c.at_q.adjoint(torch.bmm(do, z.mT), c.q, c.b, grads["q"], grads["b"])
    grads["v"].baddbmm_(A_ak.mT, dright)
    return dright


def decay_adjoint(c: Chunk, grads: dict[str, Tensor], at_end: Tensor, plan: Plan) -> Tensor:
    """Gradient of the log-decays ``[N, C, 1 or K]``; ``at_end`` is h_next dh_next summed over values, ``[N, K]``."""
    narrow = c.total.shape[-1] == 1

    def product(x: Tensor, dx: Tensor) -> Tensor:
        both = x * dx
        return (both.sum(-1, keepdim=True) if narrow else both).to(c.total.dtype)

    written = product(c.k, grads["k"])
    if c.b is not None:
        written += product(c.b, grads["b"])
    readers = [(product(c.q, grads["q"]), plan.reads_now)]
    if c.a is not None:
        readers.append((product(c.a, grads["a"]), plan.predicts_now))
    at_end = at_end.sum(-1, keepdim=True) if narrow else at_end
    return decay_gradient(written, readers, at_end).to(c.v.dtype)
