"""One chunk of any recurrence of the engine, the decay between any two of its tokens formed, with its adjoint.

In the letters of :mod:`linrec.engines.matrix.chunk`:

.. code-block:: text

    r = v + (a e^{g_a}) h                      v_new = (I - A_ak)^-1 r
    o = (q e^{g_q}) h + A_qk v_new             h_next = e^{g_C} h + (k e^{g_C - g})^T v_new

    dv_new = A_qk^T do + (k e^{g_C - g}) dh_next          dr = (I - A_ak)^-T dv_new          dv = dr
    dA_qk = do v_new^T,  dA_ak = dr v_new^T
    dh = (q e^{g_q})^T do + (a e^{g_a})^T dr + e^{g_C} dh_next

The decay's gradient needs no gradient of any exponential (:mod:`linrec.engines.matrix.decay_gradient`). The general
path has the same form with z beside v.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from linrec.engines.matrix.decay_gradient import earlier, later
from linrec.engines.matrix.plan import Plan
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
        """e^{g_C - g}, ``[N, C, 1 or K]``."""
        return exp_as(self.total[:, -1:] - self.total, self.v)

    def channels(self, x: Tensor) -> Tensor:
        """``[N, C, K]`` by decay, ``[N, C, 1 or K]``."""
        return x.sum(-1, keepdim=True) if self.total.shape[-1] == 1 else x

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
    c: Chunk, s: Solved, h: Tensor, do: Tensor, dh_next: Tensor, plan: Plan
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of one chunk's tensors and of its entry state, from those of its output and exit state."""
    to_end, decay_q, passed = c.to_end(), exp_as(c.at_q.at_x, c.q), c.whole() * dh_next
    written = {"k": (c.k, s.v_new)}
    if c.b is not None and s.extra is not None:
        written["b"] = (c.b, s.extra[2])
    grads = {name: torch.bmm(x, dh_next.mT).mul_(to_end) for name, (_, x) in written.items()}
    grads["q"] = torch.bmm(do, h.mT).mul_(decay_q)
    grads["v"] = torch.bmm(s.scores.mT, do).baddbmm_(c.k * to_end, dh_next)
    reads = {"q": (c.q, do, c.at_q)}
    dh = torch.baddbmm(passed, (c.q * decay_q).mT, do)
    if c.a is not None:
        decay_a, dright = exp_as(c.at_a.at_x, c.a), _right_adjoint(c, s, do, dh_next, grads)
        grads["a"] = torch.bmm(dright, h.mT).mul_(decay_a)
        dh.baddbmm_((c.a * decay_a).mT, dright)
        reads["a"] = c.a, dright, c.at_a
    dg = c.channels((h * passed).sum(-1)[:, None])  # and what else crosses
    for name, (y, _) in written.items():
        dg = dg + earlier(c.channels(y * grads[name]))
    for name, (x, _, decay) in reads.items():
        dg = dg + later(c.channels(x * grads[name]), decay.now)
    for reader, (x, dx, decay) in reads.items():
        for name, (y, values) in written.items():
            dg += decay.adjoint(torch.bmm(dx, values.mT), x, y, grads[reader], grads[name])
    grads["g"] = dg
    grads["q"].mul_(plan.scale)
    return grads, dh


def _right_adjoint(c: Chunk, s: Solved, do: Tensor, dh_next: Tensor, grads: dict[str, Tensor]) -> Tensor:
    """dr, and dv with what comes through the predictions."""
    assert s.A_a is not None
    if c.b is None or s.extra is None:
        grads["v"] = solve_unit_lower_transposed(s.A_a, grads["v"])
        return grads["v"]
    A_qb, A_ak, _ = s.extra
    dz = torch.bmm(A_qb.mT, do).baddbmm_(c.b * c.to_end(), dh_next)
    dright = solve_unit_lower_transposed(s.A_a, dz)
    grads["v"].baddbmm_(A_ak.mT, dright)
    return dright
