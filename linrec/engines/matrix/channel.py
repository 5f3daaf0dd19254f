"""Chunks of the recurrences whose decay differs by channel, or that name the keys a and b of their predictions.

A chunk is computed relative to the decay in its middle (:mod:`linrec.engines.matrix.relative`). Where the decay is too
strong for that the chunk is halved, and pieces of a few tokens are left to :mod:`linrec.engines.matrix.general`, which
forms the decay between any two tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.engines.matrix.algorithms import SMALLEST
from linrec.engines.matrix.general import ChunkInputs, GeneralChunks, by_channel
from linrec.engines.matrix.plan import Memory, Plan, Span, Tensors, rows
from linrec.engines.matrix.relative import (
    Gradients,
    Relative,
    add_at_once,
    adjoint,
    leave,
    output,
    relative,
    solve,
)
from linrec.engines.matrix.scan import chunkwise
from linrec.engines.matrix.terms import MatrixTerms
from linrec.engines.numerics.checks import readable
from linrec.engines.numerics.decays import LOG2
from linrec.engines.numerics.scans import exact
from linrec.rule import Call

BLOCK = 8  # rows of one block of a cumulative sum


def chunkwise_channel(terms: MatrixTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Output ``[B, T, HV, V]`` and final state ``[B, HV, K, V]`` of any terms whose decays can be read."""
    return chunkwise(ChannelChunks, by_channel(terms.floored()), state, call)


class ChannelChunks(GeneralChunks):
    """Decays relative to mid-chunk."""

    def __init__(self, plan: Plan, tensors: Tensors, dtype: torch.dtype):
        super().__init__(plan, tensors, dtype)
        g = tensors["g"]
        assert g is not None
        self.looks = readable(g)
        self.falling = bool(self.looks and g.numel() and g.amax() <= 0)
        self.precise = exact(g[:0])

    def forward(self, index: int, span: Span, h: Tensor, h_next: Tensor, o: Tensor) -> None:
        """Fills ``h_next`` and the chunk's rows of the output."""
        c = self._load(span)
        f = self._relative(c)
        if f is not None:
            s = solve(f, c.v, c.write, h, self.plan, self.memory)
            output(f, s, self.memory, o[:, span[0] : span[1]].transpose(1, 2))
            leave(f, s, h_next)
        elif self._halved(span):
            first, second = _halves(span)
            h_between = torch.empty_like(h)
            self.forward(index, first, h, h_between, o)
            self.forward(index, second, h_between, h_next, o)
        else:
            self._forward(c, span, h, h_next, o)

    def backward(
        self,
        index: int,
        span: Span,
        h: Tensor,
        do: Tensor,
        dh_next: Tensor,
        grads: dict[str, Tensor],
    ) -> Tensor:
        """The gradient of the entry state; fills the chunk's rows of ``grads``."""
        c = self._load(span)
        f = self._relative(c)
        if f is not None:
            return self._adjoint(f, c, span, h, do, dh_next, grads)
        if self._halved(span):
            first, second = _halves(span)
            h_between = torch.empty_like(h)
            # Only the state is wanted; these rows of the gradient are written over soon.
            self.forward(index, first, h, h_between, grads["v"])
            dh_between = self.backward(index, second, h_between, do, dh_next, grads)
            return self.backward(index, first, h, do, dh_between, grads)
        return self._backward(c, span, h, do, dh_next, grads)

    def _halved(self, span: Span) -> bool:
        """Whether a chunk whose decay is too strong is cut in two, whose halves may do."""
        return self.looks and span[1] - span[0] > SMALLEST

    def _relative(self, c: ChunkInputs) -> Relative | None:
        if not readable(c.g):
            return None
        total = self.memory.rows_first("total", self.precise, *c.g.shape).copy_(c.g)
        _sum_rows(total, 1 / LOG2, self.memory)
        return relative(total, self.falling, c.tensors, self.plan, self.memory, self.dtype)

    def _adjoint(
        self,
        f: Relative,
        c: ChunkInputs,
        span: Span,
        h: Tensor,
        do: Tensor,
        dh_next: Tensor,
        grads: dict[str, Tensor],
    ) -> Tensor:
        """:meth:`backward` of a scaled chunk."""
        plan, memory = self.plan, self.memory
        s = solve(f, c.v, c.write, h, plan, memory, asks=False)
        x = adjoint(f, s, rows(do, *span), dh_next, plan, memory)
        found = {"v": x.dv}
        if "g" in grads:
            found["g"] = self._decay_gradient(f, x)
        for each in x.at_once:
            add_at_once(*each)
        places = {name: self._place(grads[name], span) for name in ("q", "k", "v")}

        def unscaled(name: str, dx: Tensor, factor: Tensor) -> None:
            place = places.get(name)
            out = memory.rows_first("d" + name, dx, *dx.shape) if place is None else place
            found[name] = torch.mul(dx, factor, out=out)

        unscaled("k", x.dwrites.last, f.down)
        unscaled("q", x.dreads.last, f.up_q)
        if f.predicts:
            unscaled("a", x.dreads.first, f.up_a)
        if f.general:
            unscaled("b", x.dwrites.first, f.down)
        self._put(c, span, found, places, grads)
        return x.dh

    def _place(self, grad: Tensor, span: Span) -> Tensor | None:
        """The rows of a gradient as ``[N, C, .]``, where what is computed can be written there at once."""
        fits = grad.shape[0] == 1 and grad.shape[2] == self._batch[1] and grad.dtype == self.dtype
        return rows(grad, *span) if fits else None

    def _decay_gradient(self, f: Relative, gradients: Gradients) -> Tensor:
        """See :mod:`linrec.engines.matrix.decay_gradient`; ``[N, C, 1 or K]``."""
        memory, (dreads, dwrites, _, at_end, *_) = self.memory, gradients
        change = memory.take("change", dreads.last, *dreads.last.shape)
        q, dq = f.reads.last, dreads.last
        if self.plan.reads_now:
            torch.mul(q, dq, out=change)
        else:
            _add_before(change.zero_(), q, dq)
        if f.predicts and self.plan.predicts_now:
            change.addcmul_(f.reads.first, dreads.first)
        elif f.predicts:
            _add_before(change, f.reads.first, dreads.first)
        # The last row is written after every decay of the chunk: all that is behind it is at_end.
        for x, dx in zip(f.writes.blocks, dwrites.blocks, strict=True):
            change[:, :-1].addcmul_(x[:, :-1], dx[:, :-1], value=-1)
        change[:, -1] += at_end
        if f.down.shape[2] == 1:
            change = change.sum(-1, keepdim=True)
        total = memory.rows_first("dtotal", change, *change.shape).copy_(change)
        return _sum_rows(total, 1.0, memory, later=True)


def _add_before(change: Tensor, x: Tensor, dx: Tensor) -> None:
    """x dx of rows that see the decay up to the token before; the first one sees none."""
    change[:, :-1].addcmul_(x[:, 1:], dx[:, 1:])


def _halves(span: Span) -> tuple[Span, Span]:
    """Two spans that together are this one."""
    middle = (span[0] + span[1]) // 2
    return (span[0], middle), (middle, span[1])


def _sum_rows(x: Tensor, factor: float, memory: Memory, later: bool = False) -> Tensor:
    """``factor`` times the sums over all rows up to each, or with ``later`` from each, in place: ``[N, C, .]``.

    A product with ones is faster than ``cumsum``; in blocks, whose sums are summed in turn, it is the less work. Rows
    are first in memory.
    """
    batch, size, width = x.shape
    block = BLOCK if size % BLOCK == 0 else size
    parts = x.transpose(0, 1).view(-1, block, batch * width)
    ones = _summing(parts, 0, factor, later, memory).expand(len(parts), block, block)
    within = torch.bmm(ones, parts, out=memory.take(f"sums {later}", parts, *parts.shape))
    ends = within[:, 0 if later else -1]
    others = torch.mm(_summing(ends[None], 1, 1.0, later, memory), ends)
    torch.add(within, others[:, None], out=parts)
    return x


def _summing(x: Tensor, skip: int, factor: float, later: bool, memory: Memory) -> Tensor:
    """``factor`` where a row of the product with x sums a row of x; with ``skip`` 1 not the row itself."""
    size = x.shape[1]
    name = f"summing {size} {skip} {factor} {later}"
    if name not in memory:
        ones = x.new_full((size, size), factor)
        memory[name] = ones.triu(skip) if later else ones.tril(-skip)
    return memory[name]
