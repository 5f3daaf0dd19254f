"""Chunks relative to the decay in their middle: so scaled, the recurrence has no decay at all.

With g the inclusive cumulative log-decay of the chunk, channel by channel, and m its value in mid-chunk,

.. code-block:: text

    q~ = scale q e^{g_q - m}    a~ = a e^{g_a - m}    k~ = k e^{m - g}    b~ = b e^{m - g}    h~ = e^m h

turn the chunk into plain products. With the rows that read, R = [a~; q~], those that are written, W = [b~; k~], what is
written with them, X = [z; v] (delta: W = k~, X = v_new; additive: R = q~, W = k~, X = v), and A = R W^T below the
diagonal, in the letters of :mod:`linrec.engines.matrix.chunk`,

.. code-block:: text

    z = (I - A_ab)^-1 (a~ h~ + A_ak v)          v_new = (I - A_ak)^-1 (a~ h~ + v)
    o = q~ h~ + A_q X                           h_next = e^{g_C - m} (h~ + W^T X)

    dE = e^{g_C - m} dh_next      dX = A_q^T do + W dE      dr = (I - A_a)^-T dX_z or dX_v      D = [dr; do]
    dA = D X^T below the diagonal        dR = D h~^T + dA W        dW = X dE^T + dA^T R        dh = e^m (dE + R^T D)

Every factor is one exponential of a sum known in double precision, and a product of two is the decay between two
tokens: nothing is lost as long as none of them overflows. Entries above the diagonal may, and are overwritten with
zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from linrec.engines.matrix.plan import Memory, Plan, Stack
from linrec.engines.numerics.decays import LOG2, REACH
from linrec.engines.numerics.triangular import BlockSystems


class Relative(NamedTuple):
    """One chunk so scaled; ``[N, C, .]``, N = B HV. ``up`` = scale e^{g_q - m}, e^{g_a - m}, ``down`` = e^{m - g}.

    ``reads`` is R, whose first block are rows a where there are two; ``writes`` is W, with rows b.
    """

    reads: Stack
    writes: Stack
    up_q: Tensor
    up_a: Tensor
    down: Tensor
    enter: Tensor  # e^m as rows of the state, [N, 1 or K, 1]
    leave: Tensor  # e^{G_C - m}

    @property
    def predicts(self) -> bool:
        """Whether the chunk has rows a."""
        return self.reads.double

    @property
    def general(self) -> bool:
        """Whether predictions are written with rows of their own, b."""
        return self.writes.double


def relative(
    total: Tensor,
    falling: bool,
    rows: dict[str, Tensor | None],
    plan: Plan,
    memory: Memory,
    dtype: torch.dtype,
) -> Relative | None:
    """The scaled chunk of q, k, a, b, or None where the decay of the chunk is too strong for it.

    ``total`` ``[N, C, 1 or K]``, rows first in memory, is g / log 2 in double precision, and is overwritten; whether it
    is ``falling`` from row to row.
    """
    size = total.shape[1]
    # A whole number of halvings: scaling by it is exact, so no later decay reaches an earlier row by rounding.
    halvings = total[:, size // 2 : size // 2 + 1].round()
    if not (falling and _is_short(total[:, -1])) and not _within_reach(total, halvings):
        return None
    # Two to some power takes torch a third of the time of e to it on a CPU. Unscaled again it is within single
    # precision, too.
    up = memory.rows_first("up", total, *total.shape, dtype=dtype).copy_(total.exp2_())
    enter = torch.exp2(halvings).to(dtype)
    up.mul_(enter.reciprocal())
    down = torch.reciprocal(up, out=memory.rows_first("down", up, *up.shape))
    before = up
    if not (plan.reads_now and (plan.predicts_now or rows["a"] is None)):
        before = memory.rows_first("before", up, *up.shape)
        before[:, :1] = enter.reciprocal()
        before[:, 1:] = up[:, :-1]
    up_q, up_a = (up if now else before for now in (plan.reads_now, plan.predicts_now))
    if plan.scale != 1:
        up_q = torch.mul(up_q, plan.scale, out=memory.rows_first("scaled", up, *up.shape))
    reads = _stacked("reads", ((rows["a"], up_a), (rows["q"], up_q)), memory)
    writes = _stacked("writes", ((rows["b"], down), (rows["k"], down)), memory)
    return Relative(reads, writes, up_q, up_a, down, enter.mT, up[:, -1:].mT)


def _is_short(last: Tensor) -> bool:
    """Whether a falling decay is within reach from whatever row; not where something is not a number."""
    return bool(last.amin() >= 1 - REACH / LOG2)


def _within_reach(total: Tensor, halvings: Tensor) -> bool:
    """Whether nothing overflows, scaled and on the way there; not where something is not a number."""
    low, high = torch.aminmax(total - halvings)
    reach = torch.stack([-low, high, -halvings.amin(), halvings.amax()]).amax()
    return bool(reach <= REACH / LOG2)


def _stacked(name: str, parts: tuple[tuple[Tensor | None, Tensor], ...], memory: Memory) -> Stack:
    """The products of those that there are, one below the other."""
    present = [(x, factor) for x, factor in parts if x is not None]
    x, factor = present[0]
    stack = memory.stack(name, factor, len(present), *x.shape)
    for (x, factor), out in zip(present, stack.blocks, strict=True):
        torch.mul(x, factor, out=out)
    return stack


class Solved(NamedTuple):
    """A_q ``[N, C, (2) C]``, A_ak where there are b, I - A_a, X, h~, R h~."""

    scores: Tensor
    within: Tensor | None
    systems: BlockSystems | None
    written: Stack
    h: Tensor
    seen: Stack


def solve(
    f: Relative, v: Tensor, write: Tensor | None, h: Tensor, plan: Plan, memory: Memory, asks: bool = True
) -> Solved:
    """What the chunk sees and writes; write v ``[N, C, V]``, the entry state ``[N, K, V]``.

    Without ``asks`` what q sees is left out: the adjoint does without.
    """
    count, size, _ = v.shape
    read, wrote = len(f.reads.blocks), len(f.writes.blocks)
    h_there = torch.mul(h, f.enter, out=memory.take("inner", h, *h.shape))
    grams = memory.stack("grams", h_there, read, count, size, wrote * size)
    torch.bmm(f.reads.whole, f.writes.whole.mT, out=grams.whole)
    seen = memory.stack("seen", h_there, read, *v.shape)
    if asks:
        torch.bmm(f.reads.whole, h_there, out=seen.whole)
    elif f.predicts:
        torch.bmm(f.reads.first, h_there, out=seen.first)
    scores = memory.take("scores", h_there, *grams.last.shape).copy_(grams.last)
    _below(scores, _diagonal(plan))
    written = memory.stack("written", h_there, wrote, *v.shape)
    systems = within = None
    if not f.predicts or f.general:
        _strengthened(v, write, written.last)
    if f.predicts:
        systems, right = memory.systems(h_there, count, size), memory.take("right", h_there, *v.shape)
        systems.matrices.copy_(grams.first[:, :, :size]).tril_(-1)
        systems.invert()
        if f.general:
            within = (
                memory.take("within", h_there, count, size, size).copy_(grams.first[:, :, size:]).tril_(-1)
            )
            torch.baddbmm(seen.first, within, written.last, out=right)
        elif write is None:
            torch.add(seen.first, v, out=right)
        else:
            torch.addcmul(seen.first, v, write, out=right)
        systems.solve(right, written.first)
    return Solved(scores, within, systems, written, h_there, seen)


def _below(scores: Tensor, diagonal: int) -> None:
    """Keeps of each block ``[N, C, C]`` what is up to the diagonal."""
    size = scores.shape[1]
    if scores.shape[2] == size:
        scores.tril_(diagonal)
    else:
        for part in scores.split(size, 2):
            part.tril_(diagonal)


def _strengthened(v: Tensor, write: Tensor | None, out: Tensor) -> None:
    if write is None:
        out.copy_(v)
    else:
        torch.mul(v, write, out=out)


def _diagonal(plan: Plan) -> int:
    """Up to which diagonal q sees what is written."""
    return 0 if plan.reads_now else -1


def output(f: Relative, s: Solved, memory: Memory, out: Tensor) -> None:
    """The output in ``[B, HV, C, V]``."""
    product = torch.bmm(s.scores, s.written.whole, out=memory.take("product", s.h, *s.seen.last.shape))
    torch.add(product.view(out.shape), s.seen.last.unflatten(0, out.shape[:2]), out=out)


def leave(f: Relative, s: Solved, h_next: Tensor) -> None:
    """The exit state; h~ is overwritten."""
    torch.mul(s.h.baddbmm_(f.writes.whole.mT, s.written.whole), f.leave, out=h_next)


AtOnce = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Gradients(NamedTuple):
    """dR and dW without what is read before the next decay, and what :func:`add_at_once` makes of that."""

    dreads: Stack
    dwrites: Stack
    at_once: list[AtOnce]
    at_end: Tensor  # see decay_gradient, [N, K]
    dv: Tensor  # that of what v writes
    dh: Tensor


def adjoint(f: Relative, s: Solved, do: Tensor, dh_next: Tensor, plan: Plan, memory: Memory) -> Gradients:
    """From the gradients of the output and of the exit state.

    dh is memory: that of the exit state, where it came from the chunk behind, is overwritten.
    """
    read, wrote = len(f.reads.blocks), len(f.writes.blocks)
    asked = memory.stack("asked", s.h, read, *do.shape)
    asked.last.copy_(do)
    dout = torch.mul(dh_next, f.leave, out=memory.take("dout", dh_next, *dh_next.shape))
    dwritten = memory.stack("dwritten", dout, wrote, *do.shape)
    torch.bmm(f.writes.whole, dout, out=dwritten.whole).baddbmm_(s.scores.mT, asked.last)
    dv = dwritten.last
    if s.systems is not None:
        dv = s.systems.solve_transposed(dwritten.first, asked.first)
        if s.within is not None:
            dv = dwritten.last.baddbmm_(s.within.mT, dv)
    weighted = memory.stack("weighted", dout, read, *s.scores.shape)
    torch.bmm(asked.whole, s.written.whole.mT, out=weighted.whole)
    dreads = memory.stack("dreads", dout, read, *f.reads.last.shape)
    dwrites = memory.stack("dwrites", dout, wrote, *f.writes.last.shape)
    at_once = _at_once(f, weighted, dreads, dwrites, plan)
    torch.bmm(asked.whole, s.h.mT, out=dreads.whole).baddbmm_(weighted.whole, f.writes.whole)
    torch.bmm(s.written.whole, dout.mT, out=dwrites.whole)
    at_end = _at_end(f, s.h, dwrites, dout, memory)
    dwrites.whole.baddbmm_(weighted.whole.mT, f.reads.whole)
    dh = dout.baddbmm_(f.reads.whole.mT, asked.whole).mul_(f.enter)
    return Gradients(dreads, dwrites, at_once, at_end, dv, dh)


def _at_once(f: Relative, weighted: Stack, dreads: Stack, dwrites: Stack, plan: Plan) -> list[AtOnce]:
    """Takes out of dA what is read before the next decay; the arguments of :func:`add_at_once`."""
    found: list[AtOnce] = []
    before: list[int | None] = [0 if plan.reads_now else 1]
    if f.predicts:
        before.insert(0, None if plan.predicts_now else 1)
    for x, dx, block, step in zip(f.reads.blocks, dreads.blocks, weighted.blocks, before, strict=True):
        parts = block.split(block.shape[1], 2)
        for y, dy, part in zip(f.writes.blocks, dwrites.blocks, parts, strict=True):
            if step is None:
                part.tril_(-1)
            else:
                found.append((_taken(part, step), x, y, dx, dy))
    return found


def _at_end(f: Relative, h: Tensor, dwrites: Stack, dout: Tensor, memory: Memory) -> Tensor:
    """passed + kept ``[N, K]``, of h~, dE and X dE^T. The last row is written after every decay of the chunk."""
    passed = torch.mul(h, dout, out=memory.take("passed", h, *h.shape)).sum(-1)
    for x, dx in zip(f.writes.blocks, dwrites.blocks, strict=True):
        passed += torch.mul(x, dx, out=memory.take("kept", dx, *dx.shape))[:, :-1].sum(1)
    return passed


def _taken(dm: Tensor, before: int) -> Tensor:
    """Take the weights of what is read before the next decay out of the gradient of M ``[N, C, C]``, and what no row
    reads: ``[N, C - before, 1]``. It is a row's own, or with ``before`` 1 the row before it."""
    weight = dm.diagonal(-before, 1, 2).unsqueeze(2).clone()
    dm.tril_(-before - 1)
    return weight


def add_at_once(weight: Tensor, x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> None:
    """Add what it brings to the gradients of the rows ``[N, C, K]`` that read and of those that are read."""
    before = x.shape[1] - weight.shape[1]
    if before:
        x, y, dx, dy = x[:, before:], y[:, :-before], dx[:, before:], dy[:, :-before]
    dx.addcmul_(weight, y)
    dy.addcmul_(weight, x)
