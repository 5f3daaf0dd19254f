"""The chunk algorithm with its adjoint written out: the fast path of reverse-mode training and of inference.

It walks the chunks in the public time-first layout, so that what one chunk touches stays in cache and nothing
of the length of the sequence is copied. Kept for the backward pass are the arguments and the states
between chunks.

With r = v + (a e^{G_a}) S, x = (I - L)^-1 r, o = (q e^{G_q}) S + P x and S' = e^{G_C} S + (k e^{G_C - G})^T x
the adjoint is

.. code-block:: text

    dx = P^T do + (k e^{G_C - G}) dS'          dr = (I - L)^-T dx          dv = dr
    dP = do x^T,  dL = dr x^T                  dS = (q e^{G_q})^T do + (a e^{G_a})^T dr + e^{G_C} dS'
    dG_t = q_t dq_t + a_t da_t - k_t dk_t - b_t db_t  (each at its own G),   + S' dS' at the last row

so the decay's gradient needs no gradient of any exponential. The general path has the same form with z beside v.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from linrec.engines.matrix.chunk import cumulative_decay
from linrec.engines.matrix.scores import Decay
from linrec.engines.triangular import solve_unit_lower, solve_unit_lower_transposed


class Plan(NamedTuple):
    """What a pass needs besides tensors."""

    scale: float
    chunk: int
    predict: str
    readout: str


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


def rows(x: Tensor, start: int, stop: int, repeat: int = 1) -> Tensor:
    """``[B, T, H, D]`` -> ``[B H repeat, C, D]``; a view for a batch of one without groups."""
    part = x[:, start:stop].transpose(1, 2)
    if repeat > 1:
        part = part.repeat_interleave(repeat, dim=1)
    return part.flatten(0, 1) if part.shape[0] > 1 else part[0]


def put_rows(target: Tensor, part: Tensor, start: int, stop: int) -> None:
    """The inverse of :func:`rows`; value heads that share a key head are summed."""
    batch, _, heads, width = target.shape
    part = part.view(batch, heads, -1, stop - start, width)
    target[:, start:stop] = (part[:, :, 0] if part.shape[2] == 1 else part.sum(2)).transpose(1, 2)


def load(tensors: dict[str, Tensor | None], start: int, stop: int, plan: Plan) -> Chunk:
    """Cut one chunk out of the arguments."""
    heads = tensors["v"].shape[2]  # type: ignore[union-attr]

    def cut(name: str) -> Tensor | None:
        x = tensors[name]
        return None if x is None else rows(x, start, stop, heads // x.shape[2])

    q, k, v, a, b, g = (cut(n) for n in ("q", "k", "v", "a", "b", "g"))
    assert q is not None and k is not None and v is not None and g is not None
    total = cumulative_decay(g)
    before = torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1]], dim=1)
    at_q = Decay(total if plan.readout == "post" else before, total, plan.readout == "post", v.dtype)
    at_a = Decay(total if plan.predict == "decayed" else before, total, False, v.dtype)
    if plan.readout == "post" and plan.predict == "decayed":
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


def read_and_write(c: Chunk, s: Solved, state: Tensor) -> tuple[Tensor, Tensor]:
    """Output and exit state of a chunk."""
    to_end = c.to_end()
    o = torch.bmm(c.q * exp_as(c.at_q.at_x, c.q), state).baddbmm_(s.scores, s.written)
    new_state = torch.baddbmm(c.whole() * state, (c.k * to_end).mT, s.written)
    if c.b is not None and s.extra is not None:
        scores_b, _, z = s.extra
        o.baddbmm_(scores_b, z)
        new_state.baddbmm_((c.b * to_end).mT, z)
    return o, new_state


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

    d_total = -product(c.k, grads["k"])
    if c.b is not None:
        d_total -= product(c.b, grads["b"])
    readers = [(c.q, grads["q"], plan.readout == "post")]
    if c.a is not None:
        readers.append((c.a, grads["a"], plan.predict == "decayed"))
    for x, dx, now in readers:
        if now:
            d_total += product(x, dx)
        else:  # read the decay up to the token before; the first token read none
            d_total[:, :-1] += product(x, dx)[:, 1:]
    d_total[:, -1] += at_end.sum(-1, keepdim=True) if narrow else at_end
    return d_total.flip(1).cumsum(1).flip(1).to(c.v.dtype)


NAMES = ("q", "k", "v", "g", "a", "b")


class ChunkScan(torch.autograd.Function):
    """``ChunkScan.apply(plan, plain, state, q, k, v, g, a, b) -> (o, final state)``.

    Tensors as in :class:`MatrixTerms` with g ``[B, T, HV, 1 or K]``; state ``[B, HV, K, V]``. ``plain`` computes the
    same from the same tensors in differentiable calls; it serves second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, plain: Any, state: Tensor, *values: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        tensors = dict(zip(NAMES, values, strict=True))
        v = values[2]
        assert v is not None
        o = torch.empty_like(v, memory_format=torch.contiguous_format)
        current, states = state.flatten(0, 1), []
        for start, stop in chunk_bounds(v.shape[1], plan.chunk):
            states.append(current)
            c = load(tensors, start, stop, plan)
            part, current = read_and_write(c, solve_chunk(c, current), current)
            put_rows(o, part, start, stop)
            if not any(ctx.needs_input_grad):
                states.clear()
        last = current.unflatten(0, state.shape[:2]).clone()
        if any(ctx.needs_input_grad):
            ctx.plan, ctx.plain = plan, plain
            ctx.save_for_backward(state, *values, *states, current)
        return o, last

    @staticmethod
    def backward(ctx: Any, do: Tensor, dlast: Tensor) -> tuple[Any, ...]:
        state, *saved = ctx.saved_tensors
        values, states = saved[: len(NAMES)], saved[len(NAMES) :]
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            return (None, None, *_through(ctx.plain, (state, *values), (do, dlast)))
        tensors = dict(zip(NAMES, values, strict=True))
        present = {n: x for n, x in tensors.items() if x is not None}
        grads = {n: torch.empty_like(x, memory_format=torch.contiguous_format) for n, x in present.items()}
        do = do.contiguous()  # an expanded gradient (of a sum, say) would be multiplied matrix by matrix
        dstate = dlast.flatten(0, 1)
        bounds = chunk_bounds(values[2].shape[1], ctx.plan.chunk)
        for (start, stop), entry, leaving in reversed(
            list(zip(bounds, states[:-1], states[1:], strict=True))
        ):
            c = load(tensors, start, stop, ctx.plan)
            s = solve_chunk(c, entry)
            part, dstate = chunk_adjoint(c, s, entry, leaving, rows(do, start, stop), dstate, ctx.plan)
            for name, gradient in part.items():
                put_rows(grads[name], gradient, start, stop)
        return (None, None, dstate.unflatten(0, state.shape[:2]), *(grads.get(n) for n in NAMES))


def chunk_bounds(length: int, chunk: int) -> list[tuple[int, int]]:
    """First and past-the-last token of every chunk."""
    return [(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _through(
    plain: Any, values: tuple[Tensor | None, ...], outer: tuple[Tensor, Tensor]
) -> list[Tensor | None]:
    """The gradient as a differentiable function, by way of the plain path."""
    wanted = [x for x in values if x is not None and x.requires_grad]
    # The final state, say, does not depend on q: only outputs that lead somewhere can be asked.
    outputs, weights = zip(
        *[(y, w) for y, w in zip(plain(*values), outer, strict=True) if y.requires_grad], strict=True
    )
    found = iter(torch.autograd.grad(outputs, wanted, weights, create_graph=True, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in values]
