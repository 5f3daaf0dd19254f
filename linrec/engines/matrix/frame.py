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
    """One chunk in the frame; ``[N, C, .]``, N = B HV. ``up`` = e^{G_q - m}, e^{G_a - m}, ``down`` = e^{m - G}.

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
    total: Tensor, rows: dict[str, Tensor | None], plan: Plan, memory: Memory, dtype: torch.dtype
) -> Frame | None:
    """The chunk of q, k, a, b in the frame, or None where the decay of the chunk is too strong for it.

    ``total`` ``[N, C, 1 or K]`` is G in double precision.
    """
    size = total.shape[1]
    # A whole number of halvings: scaling by it is exact, so no later decay reaches an earlier row by rounding.
    middle = total[:, size // 2 : size // 2 + 1].div(LOG2).round_()
    halvings, middle = middle, middle * LOG2
    shifted = torch.sub(total, middle, out=memory.take("shifted", total, *total.shape))
    low, high = torch.aminmax(shifted)
    reach = torch.stack([-low, high, -middle.amin()]).amax()
    if not bool(reach <= REACH):  # also where it is not a number
        return None
    # Two to some power takes torch a third of the time of e to it on a CPU.
    exact_up = torch.mul(total, 1 / LOG2, out=shifted).exp2_().mul_(torch.exp2(-halvings))
    up = memory.take("up", total, *total.shape, dtype=dtype).copy_(exact_up)
    down = torch.reciprocal(up, out=memory.take("down", up, *up.shape))
    enter = torch.exp2(halvings).to(dtype)
    before = up
    if not (plan.reads_now and (plan.predicts_now or rows["a"] is None)):
        before = torch.cat([enter.reciprocal(), up[:, :-1]], dim=1, out=memory.take("before", up, *up.shape))
    up_q, up_a = (up if now else before for now in (plan.reads_now, plan.predicts_now))
    reads = _stacked("reads", (rows["a"], up_a), (rows["q"], up_q), memory)
    reads[:, -size:].mul_(plan.scale)
    writes = _stacked("writes", (rows["b"], down), (rows["k"], down), memory)
    return Frame(reads, writes, up_q, up_a, down, enter.mT, up[:, -1:].mT, size)


def _stacked(
    name: str, first: tuple[Tensor | None, Tensor], second: tuple[Tensor | None, Tensor], memory: Memory
) -> Tensor:
    """The products of both pairs, one below the other; of the second alone where the first has none."""
    parts = [(x, factor) for x, factor in (first, second) if x is not None]
    batch, size, width = parts[0][0].shape
    out = memory.take(name, second[1], batch, len(parts) * size, width)
    for number, (x, factor) in enumerate(parts):
        torch.mul(x, factor, out=out[:, number * size : (number + 1) * size])
    return out


class Solved(NamedTuple):
    """M with zeros where nothing is read, I - M_a, X ``[N, (2) C, V]``, S~ and q~ S~ + M_q X."""

    scores: Tensor
    systems: BlockSystems | None
    written: Tensor
    state: Tensor
    output: Tensor


def solve(f: Frame, v: Tensor, state: Tensor, plan: Plan, memory: Memory) -> Solved:
    """What the chunk writes, and its output; v ``[N, C, V]``, the entry state ``[N, K, V]``."""
    size = f.length
    inner = torch.mul(state, f.enter, out=memory.take("inner", state, *state.shape))
    read, wrote = f.reads.shape[1], f.writes.shape[1]
    scores = memory.take("scores", inner, len(inner), read, wrote)
    _below(torch.bmm(f.reads, f.writes.mT, out=scores), f, plan)
    seen = torch.bmm(f.reads, inner, out=memory.take("seen", v, len(v), read, v.shape[2]))
    written = memory.take("written", v, len(v), wrote, v.shape[2])
    systems = None
    if f.predicts:
        systems = memory.systems(scores, len(inner), size)
        systems.matrices.copy_(scores[:, :size, :size])
        systems.invert()
    if systems is None:
        written.copy_(v)
    elif f.general:
        written[:, size:] = v
        right = torch.baddbmm(seen[:, :size], scores[:, :size, size:], written[:, size:])
        systems.solve(right, written[:, :size])
    else:
        systems.solve(torch.add(seen[:, :size], v, out=written), written)
    return Solved(scores, systems, written, inner, seen[:, -size:].baddbmm_(scores[:, -size:], written))


def _below(scores: Tensor, f: Frame, plan: Plan) -> None:
    """Zero where nothing is read: each row of C by C blocks alike."""
    size = f.length
    for start in range(0, scores.shape[2], size):
        block = scores[:, :, start : start + size]
        if f.predicts:
            block[:, :size].tril_(-1)
        block[:, -size:].tril_(0 if plan.reads_now else -1)


def leave(f: Frame, s: Solved, new_state: Tensor) -> None:
    """The exit state; S~ is overwritten."""
    torch.mul(s.state.baddbmm_(f.writes.mT, s.written), f.leave, out=new_state)


def adjoint(
    f: Frame, s: Solved, do: Tensor, dexit: Tensor, plan: Plan, memory: Memory
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dR, dW, dv and the gradient of the entry state, from those of the output and of the exit state.

    The last is memory: that of the exit state, where it came from the chunk behind, is overwritten.
    """
    size, (batch, read, wrote) = f.length, s.scores.shape
    dout = torch.mul(dexit, f.leave, out=memory.take("dout", dexit, *dexit.shape))
    dwritten = torch.bmm(f.writes, dout, out=memory.take("dwritten", do, batch, wrote, do.shape[2]))
    dwritten.baddbmm_(s.scores[:, -size:].mT, do)
    asked = do
    dv = dwritten[:, -size:]
    if s.systems is not None:
        asked = memory.take("asked", do, batch, read, do.shape[2])
        dright = s.systems.solve_transposed(dwritten[:, :size], asked[:, :size])
        asked[:, size:] = do
        dv = dv.baddbmm_(s.scores[:, :size, size:].mT, dright) if f.general else dright
    weighted = torch.bmm(asked, s.written.mT, out=memory.take("weighted", s.scores, *s.scores.shape))
    _below(weighted, f, plan)
    dreads = torch.bmm(asked, s.state.mT, out=memory.take("dreads", f.reads, *f.reads.shape))
    dreads.baddbmm_(weighted, f.writes)
    dwrites = torch.bmm(s.written, dout.mT, out=memory.take("dwrites", f.writes, *f.writes.shape))
    dwrites.baddbmm_(weighted.mT, f.reads)
    return dreads, dwrites, dv, dout.baddbmm_(f.reads.mT, asked).mul_(f.enter)
