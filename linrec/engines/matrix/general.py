"""Chunks of every recurrence of the engine, decay by channel and the general path included, with their adjoint.

With r = v + (a e^{G_a}) S, x = (I - L)^-1 r, o = (q e^{G_q}) S + P x and S' = e^{G_C} S + (k e^{G_C - G})^T x
the adjoint is

.. code-block:: text

    dx = P^T do + (k e^{G_C - G}) dS'          dr = (I - L)^-T dx          dv = dr
    dP = do x^T,  dL = dr x^T                  dS = (q e^{G_q})^T do + (a e^{G_a})^T dr + e^{G_C} dS'
    dG_t = q_t dq_t + a_t da_t - k_t dk_t - b_t db_t  (each at its own G),   + S' dS' at the last row

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
    return chunkwise(GeneralLane, by_channel(terms.floored()), state, call)


def by_channel(terms: MatrixTerms) -> MatrixTerms:
    """With a decay ``[B, T, HV, 1 or K]``."""
    g = terms.v.new_zeros(terms.v.shape[:3]) if terms.g is None else terms.g
    return replace(terms, g=g if g.dim() == 4 else g[..., None])


class Rows(NamedTuple):
    """One chunk, heads first ``[N, C, .]``: the tensors q, k, v, g, a, b, where a may be -erase k; the strengths."""

    tensors: dict[str, Tensor | None]
    k: Tensor
    v: Tensor
    g: Tensor
    write: Tensor | None
    erased: Tensor | None  # -erase


class GeneralLane:
    """See :class:`linrec.engines.matrix.scan.Lane`; states are ``[N, K, V]``, N = B HV."""

    NAMES: ClassVar[tuple[str, ...]] = ("q", "k", "v", "g", "a", "b", "write", "erase")

    def __init__(self, plan: Plan, tensors: Tensors, dtype: torch.dtype):
        self.plan, self.tensors, self.dtype, self.memory = plan, tensors, dtype, Memory()
        batch, heads = self._batch
        whole = {name: x if x.dim() == 4 else x[..., None] for name, x in tensors.items() if x is not None}
        views = {name: x[0].transpose(0, 1) for name, x in whole.items() if batch == 1}
        self.heads_first = {name: x for name, x in views.items() if len(x) == heads}

    def inner(self, state: Tensor) -> Tensor:
        """``[N, K, V]``."""
        return state.flatten(0, 1)

    def outer(self, state: Tensor) -> Tensor:
        """``[B, HV, K, V]``."""
        return state.unflatten(0, self._batch)

    def numbers(self) -> dict[str, Tensor]:
        """None: every chunk gives all of its own."""
        return {}

    def forward(self, number: int, span: Span, state: Tensor, new_state: Tensor, o: Tensor) -> None:
        """Fills ``new_state`` and the chunk's rows of the output."""
        self._forward(self._load(span), span, state, new_state, o)

    def _forward(self, c: Rows, span: Span, state: Tensor, new_state: Tensor, o: Tensor) -> None:
        exactly = self._exactly(c)
        solved = solve_chunk(exactly, state)
        put_rows(o, read_and_write(exactly, solved, state, new_state), *span)

    def backward(
        self,
        number: int,
        span: Span,
        states: tuple[Tensor, Tensor],
        do: Tensor,
        dexit: Tensor,
        grads: dict[str, Tensor],
    ) -> Tensor:
        """The gradient of the entry state; fills the chunk's rows of ``grads``."""
        return self._backward(self._load(span), span, states, do, dexit, grads)

    def _backward(
        self,
        c: Rows,
        span: Span,
        states: tuple[Tensor, Tensor],
        do: Tensor,
        dexit: Tensor,
        grads: dict[str, Tensor],
    ) -> Tensor:
        exactly = self._exactly(c)
        solved = solve_chunk(exactly, states[0])
        part = rows(do, *span).contiguous()  # an expanded gradient would be multiplied matrix by matrix
        found, dentry = chunk_adjoint(exactly, solved, *states, part, dexit, self.plan)
        self._put(c, span, found, {}, grads)
        return dentry

    @property
    def _batch(self) -> tuple[int, int]:
        v = self.tensors["v"]
        assert v is not None
        return v.shape[0], v.shape[2]

    def _load(self, span: Span) -> Rows:
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
        return Rows(found, k, v, g, write, erased)

    def _exactly(self, c: Rows) -> Chunk:
        tensors = {name: None if x is None else x.to(self.dtype) for name, x in c.tensors.items()}
        if c.write is not None:
            tensors["v"] = c.v * c.write
        return chunk_of(tensors, self.plan)

    def _put(
        self,
        c: Rows,
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
        """e^{G_C - G}, ``[N, C, 1 or K]``."""
        return exp_as(self.total[:, -1:] - self.total, self.v)

    def whole(self) -> Tensor:
        """e^{G_C} as rows of the state, ``[N, 1 or K, 1]``."""
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
    """What forward and adjoint share in a chunk; ``extra`` is (P_b, L_k, z) of the general path."""

    scores: Tensor
    system: Tensor | None
    written: Tensor
    extra: tuple[Tensor, Tensor, Tensor] | None


def solve_chunk(c: Chunk, state: Tensor) -> Solved:
    """The scores of the chunk and what it writes into the state ``[N, K, V]``."""
    scores = c.at_q.scores(c.q, c.k)
    if c.a is None:
        return Solved(scores, None, c.v, None)
    right = torch.bmm(c.a * exp_as(c.at_a.at_x, c.a), state)
    if c.b is None:
        system = c.at_a.scores(c.a, c.k)
        return Solved(scores, system, solve_unit_lower(system, right.add_(c.v)), None)
    within = c.at_a.scores(c.a, c.k)
    system = c.at_a.scores(c.a, c.b)
    z = solve_unit_lower(system, right.baddbmm_(within, c.v))
    return Solved(scores, system, c.v, (c.at_q.scores(c.q, c.b), within, z))


def read_and_write(c: Chunk, s: Solved, state: Tensor, new_state: Tensor) -> Tensor:
    """Output of a chunk; fills the exit state ``new_state``."""
    to_end = c.to_end()
    o = torch.bmm(c.q * exp_as(c.at_q.at_x, c.q), state).baddbmm_(s.scores, s.written)
    torch.mul(c.whole(), state, out=new_state).baddbmm_((c.k * to_end).mT, s.written)
    if c.b is not None and s.extra is not None:
        scores_b, _, z = s.extra
        o.baddbmm_(scores_b, z)
        new_state.baddbmm_((c.b * to_end).mT, z)
    return o


def chunk_adjoint(
    c: Chunk, s: Solved, entry: Tensor, exit_state: Tensor, do: Tensor, dexit: Tensor, plan: Plan
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of one chunk's tensors and of its entry state, from those of its output and exit state."""
    to_end, decay_q = c.to_end(), exp_as(c.at_q.at_x, c.q)
    dentry = torch.baddbmm(c.whole() * dexit, (c.q * decay_q).mT, do)
    dq = torch.bmm(do, entry.mT).mul_(decay_q)
    dk = torch.bmm(s.written, dexit.mT).mul_(to_end)
    dwritten = torch.bmm(s.scores.mT, do).baddbmm_(c.k * to_end, dexit)
    c.at_q.adjoint(torch.bmm(do, s.written.mT), c.q, c.k, dq, dk)
    grads = {"q": dq, "k": dk, "v": dwritten}
    if c.a is not None and s.system is not None:
        if c.b is None:
            grads["v"] = dright = solve_unit_lower_transposed(s.system, dwritten)
        else:
            dright = _general_adjoint(c, s, do, dexit, grads)
        decay_a = exp_as(c.at_a.at_x, c.a)
        grads["a"] = torch.bmm(dright, entry.mT).mul_(decay_a)
        c.at_a.adjoint(torch.bmm(dright, s.written.mT), c.a, c.k, grads["a"], dk)
        if c.b is not None and s.extra is not None:
            c.at_a.adjoint(torch.bmm(dright, s.extra[2].mT), c.a, c.b, grads["a"], grads["b"])
        dentry.baddbmm_((c.a * decay_a).mT, dright)
    grads["g"] = decay_adjoint(c, grads, (exit_state * dexit).sum(-1), plan)
    dq.mul_(plan.scale)
    return grads, dentry


def _general_adjoint(c: Chunk, s: Solved, do: Tensor, dexit: Tensor, grads: dict[str, Tensor]) -> Tensor:
    """What the prediction z adds to the gradients in the general path; returns that of the system's right side."""
    assert s.system is not None and s.extra is not None and c.b is not None
    scores_b, within, z = s.extra
    to_end = c.to_end()
    dz = torch.bmm(scores_b.mT, do).baddbmm_(c.b * to_end, dexit)
    dright = solve_unit_lower_transposed(s.system, dz)
    grads["b"] = torch.bmm(z, dexit.mT).mul_(to_end)
    c.at_q.adjoint(torch.bmm(do, z.mT), c.q, c.b, grads["q"], grads["b"])
    grads["v"].baddbmm_(within.mT, dright)
    return dright


def decay_adjoint(c: Chunk, grads: dict[str, Tensor], at_end: Tensor, plan: Plan) -> Tensor:
    """Gradient of the log-decays ``[N, C, 1 or K]``; ``at_end`` is S' dS' summed over values, ``[N, K]``."""
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
