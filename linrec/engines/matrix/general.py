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
from typing import NamedTuple

import torch
from torch import Tensor

from linrec.engines.matrix.plan import Plan, decay_gradient
from linrec.engines.matrix.scores import Decay
from linrec.engines.numerics.decays import cumulative_decay
from linrec.engines.numerics.triangular import solve_unit_lower, solve_unit_lower_transposed


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
