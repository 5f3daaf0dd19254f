"""Chunks seen from a frame that moves with the decay: there the recurrence has no decay at all.

With G the inclusive cumulative log-decay of the chunk, channel by channel, and m its value in mid-chunk,

.. code-block:: text

    q~ = scale q e^{G_q - m}    a~ = a e^{G_a - m}    k~ = k e^{m - G}    b~ = b e^{m - G}    S~ = e^m S

turn the chunk into plain products. With the rows that read, R = [a~; q~], those that are written, W = [b~; k~], what is
written with them, X = [z; v] (delta: W = k~, X = x; additive: R = q~, W = k~, X = v), and M = R W^T below the diagonal

.. code-block:: text

    z = (I - M_ab)^-1 (a~ S~ + M_ak v)          x = (I - M_ak)^-1 (a~ S~ + v)
    o = q~ S~ + M_q X                           S' = e^{G_C - m} (S~ + W^T X)

    dE = e^{G_C - m} dS'      dX = M_q^T do + W dE      dr = (I - M_a)^-T dX_z or dX_x      D = [dr; do]
    dM = D X^T below the diagonal        dR = D S~^T + dM W        dW = X dE^T + dM^T R        dS = e^m (dE + R^T D)

Every factor is one exponential of a sum known in double precision, and a product of two is the decay between two
tokens: nothing is lost as long as none of them overflows. Entries above the diagonal may, and are overwritten with
zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from linrec.engines.decays import LOG2, REACH
from linrec.engines.matrix.plan import Memory, Plan
from linrec.engines.triangular import BlockSystems


class Frame(NamedTuple):
    """One chunk in the frame; ``[N, C, .]``, N = B HV. ``up`` = scale e^{G_q - m}, e^{G_a - m}, ``down`` = e^{m - G}.

    ``reads`` ``[N, (2) C, K]`` is R, ``writes`` ``[N, (2) C, K]`` W.
    """

    reads: Tensor
    writes: Tensor
    up_q: Tensor
    up_a: Tensor
    down: Tensor
    enter: Tensor  # e^m as rows of the state, [N, 1 or K, 1]
    leave: Tensor  # e^{G_C - m}
    length: int

    @property
    def predicts(self) -> bool:
        """Whether the chunk has rows a."""
        return self.reads.shape[1] > self.length

    @property
    def general(self) -> bool:
        """Whether predictions are written with rows of their own, b."""
        return self.writes.shape[1] > self.length


def framed(
    total: Tensor, falling: bool, rows: dict[str, Tensor | None], plan: Plan, memory: Memory, dtype: torch.dtype
) -> Frame | None:
    """The chunk of q, k, a, b in the frame, or None where the decay of the chunk is too strong for it.

    ``total`` ``[N, C, 1 or K]``, rows first in memory, is G / log 2 in double precision, and is overwritten; whether it
    is ``falling`` from row to row.
    """
    size = total.shape[1]
    # A whole number of halvings: scaling by it is exact, so no later decay reaches an earlier row by rounding.
    halvings = total[:, size // 2 : size // 2 + 1].round()
    if not _within_reach(total[:, :: max(size - 1, 1)] if falling else total, halvings):
        return None
    # Two to some power takes torch a third of the time of e to it on a CPU. Out of the frame it is within single
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
    return Frame(reads, writes, up_q, up_a, down, enter.mT, up[:, -1:].mT, size)


def _within_reach(total: Tensor, halvings: Tensor) -> bool:
    """Whether nothing overflows, in the frame and on the way to it; not where something is not a number."""
    low, high = torch.aminmax(total - halvings)
    reach = torch.stack([-low, high, -halvings.amin(), halvings.amax()]).amax()
    return bool(reach <= REACH / LOG2)


def _stacked(name: str, parts: tuple[tuple[Tensor | None, Tensor], ...], memory: Memory) -> Tensor:
    """The products of those that there are, one below the other."""
    present = [(x, factor) for x, factor in parts if x is not None]
    x, factor = present[0]
    batch, size, width = x.shape
    out = memory.take(name, factor, batch, len(present) * size, width)
    for number, (x, factor) in enumerate(present):
        torch.mul(x, factor, out=out[:, number * size : (number + 1) * size])
    return out


class Solved(NamedTuple):
    """M_q ``[N, C, (2) C]``, M_ak where there are b, I - M_a, X ``[N, (2) C, V]``, S~, R S~."""

    scores: Tensor
    within: Tensor | None
    systems: BlockSystems | None
    written: Tensor
    state: Tensor
    seen: Tensor


def solve(f: Frame, v: Tensor, write: Tensor | None, state: Tensor, plan: Plan, memory: Memory) -> Solved:
    """What the chunk sees and writes; write v ``[N, C, V]``, the entry state ``[N, K, V]``."""
    size, count = f.length, len(state)
    read, wrote = f.reads.shape[1], f.writes.shape[1]
    inner = torch.mul(state, f.enter, out=memory.take("inner", state, *state.shape))
    grams = torch.bmm(f.reads, f.writes.mT, out=memory.take("grams", inner, count, read, wrote))
    seen = torch.bmm(f.reads, inner, out=memory.take("seen", inner, count, read, v.shape[2]))
    scores = memory.take("scores", inner, count, size, wrote)
    for part, out in zip(grams[:, -size:].split(size, 2), scores.split(size, 2), strict=True):
        out.copy_(part).tril_(_diagonal(plan))
    written = memory.take("written", inner, count, wrote, v.shape[2])
    systems = within = None
    values = written[:, -size:]
    if not f.predicts or f.general:
        _strengthened(v, write, values)
    if f.predicts:
        systems, right = memory.systems(inner, count, size), memory.take("right", inner, *v.shape)
        systems.matrices.copy_(grams[:, :size, :size]).tril_(-1)
        systems.invert()
        if f.general:
            within = memory.take("within", inner, count, size, size).copy_(grams[:, :size, size:]).tril_(-1)
            torch.baddbmm(seen[:, :size], within, values, out=right)
        elif write is None:
            torch.add(seen[:, :size], v, out=right)
        else:
            torch.addcmul(seen[:, :size], v, write, out=right)
        systems.solve(right, written[:, :size])
    return Solved(scores, within, systems, written, inner, seen)


def _strengthened(v: Tensor, write: Tensor | None, out: Tensor) -> None:
    if write is None:
        out.copy_(v)
    else:
        torch.mul(v, write, out=out)


def _diagonal(plan: Plan) -> int:
    """Up to which diagonal q sees what is written."""
    return 0 if plan.reads_now else -1


def output(f: Frame, s: Solved, memory: Memory, out: Tensor) -> None:
    """The output in ``[B, HV, C, V]``."""
    product = torch.bmm(s.scores, s.written, out=memory.take("product", s.seen, len(s.seen), *out.shape[2:]))
    torch.add(product.view(out.shape), s.seen[:, -f.length :].unflatten(0, out.shape[:2]), out=out)


def leave(f: Frame, s: Solved, new_state: Tensor) -> None:
    """The exit state; S~ is overwritten."""
    torch.mul(s.state.baddbmm_(f.writes.mT, s.written), f.leave, out=new_state)


def adjoint(
    f: Frame, s: Solved, do: Tensor, dexit: Tensor, plan: Plan, memory: Memory
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dR, dW, that of what v writes, and of the entry state, from those of the output and of the exit state.

    The last is memory: that of the exit state, where it came from the chunk behind, is overwritten.
    """
    size, count, width = f.length, *do.shape[::2]
    asked = memory.take("asked", s.seen, count, f.reads.shape[1], width)
    asked[:, -size:] = do
    dout = torch.mul(dexit, f.leave, out=memory.take("dout", dexit, *dexit.shape))
    dwritten = torch.bmm(f.writes, dout, out=memory.take("dwritten", dout, count, f.writes.shape[1], width))
    dwritten.baddbmm_(s.scores.mT, asked[:, -size:])
    dv = dwritten
    if s.systems is not None:
        dv = s.systems.solve_transposed(dwritten[:, :size], asked[:, :size])
        if s.within is not None:
            dv = dwritten[:, size:].baddbmm_(s.within.mT, dv)
    weighted = torch.bmm(asked, s.written.mT, out=memory.take("weighted", dout, *f.reads.shape[:2], f.writes.shape[1]))
    for part in weighted.split(size, 2):
        if s.systems is not None:
            part[:, :size].tril_(-1)
        part[:, -size:].tril_(_diagonal(plan))
    dreads = torch.bmm(asked, s.state.mT, out=memory.take("dreads", f.reads, *f.reads.shape))
    dreads.baddbmm_(weighted, f.writes)
    dwrites = torch.bmm(s.written, dout.mT, out=memory.take("dwrites", f.writes, *f.writes.shape))
    dwrites.baddbmm_(weighted.mT, f.reads)
    return dreads, dwrites, dv, dout.baddbmm_(f.reads.mT, asked).mul_(f.enter)
