"""Chunks of the recurrences whose decay differs by channel, or that name the keys a and b of their predictions.

A chunk is computed in the frame that moves with its decay (:mod:`linrec.engines.matrix.frame`). Where the decay is too
strong for that the chunk is halved, and pieces of a few tokens are left to :mod:`linrec.engines.matrix.general`, which
forms the decay between any two tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from linrec.engines.matrix import general
from linrec.engines.matrix.frame import Frame, adjoint, framed, leave, output, solve
from linrec.engines.matrix.plan import Memory, Plan, Span, Stack, Tensors, put_rows, rows
from linrec.engines.numerics.checks import readable
from linrec.engines.numerics.decays import LOG2, REACH
from linrec.engines.numerics.scans import exact

SMALLEST = 16  # tokens that are not halved further
BLOCK = 8  # rows of one block of a cumulative sum


class Rows(NamedTuple):
    """One chunk, heads first ``[N, C, .]``: the tensors q, k, v, g, a, b, where a may be -erase k; the strengths."""

    tensors: dict[str, Tensor | None]
    k: Tensor
    v: Tensor
    g: Tensor
    write: Tensor | None
    erased: Tensor | None  # -erase


class ChannelLane:
    """See :class:`linrec.engines.matrix.scan.Lane`; states are ``[N, K, V]``, N = B HV."""

    NAMES = ("q", "k", "v", "g", "a", "b", "write", "erase")

    def __init__(self, plan: Plan, tensors: Tensors, dtype: torch.dtype):
        self.plan, self.tensors, self.dtype, self.memory = plan, tensors, dtype, Memory()
        g = tensors["g"]
        assert g is not None
        self.looks = readable(g)
        known = self.looks and g.numel() > 0
        self.falling = bool(known and g.amax() <= 0)
        # A decay that is the same at every token and too strong for the shortest pieces: no piece would have a frame.
        self.steep = bool(known and g.stride(1) == 0 and -g[:, :1].amin() * (SMALLEST // 2 + 1) > REACH)
        self.precise = exact(g[:0])
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
        c = self._load(span)
        f = self._framed(c)
        if f is not None:
            s = solve(f, c.v, c.write, state, self.plan, self.memory)
            output(f, s, self.memory, o[:, span[0] : span[1]].transpose(1, 2))
            leave(f, s, new_state)
        elif self._halved(span):
            first, second = _halves(span)
            between = torch.empty_like(state)
            self.forward(number, first, state, between, o)
            self.forward(number, second, between, new_state, o)
        else:
            exactly = self._exactly(c)
            solved = general.solve_chunk(exactly, state)
            put_rows(o, general.read_and_write(exactly, solved, state, new_state), *span)

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
        c = self._load(span)
        f = self._framed(c)
        if f is not None:
            return self._adjoint(f, c, span, states, do, dexit, grads)
        if self._halved(span):
            first, second = _halves(span)
            between = torch.empty_like(states[0])
            # Only the state is wanted; these rows of the gradient are written over soon.
            self.forward(number, first, states[0], between, grads["v"])
            dbetween = self.backward(number, second, (between, states[1]), do, dexit, grads)
            return self.backward(number, first, (states[0], between), do, dbetween, grads)
        exactly = self._exactly(c)
        solved = general.solve_chunk(exactly, states[0])
        part = rows(do, *span).contiguous()  # an expanded gradient would be multiplied matrix by matrix
        found, dentry = general.chunk_adjoint(exactly, solved, *states, part, dexit, self.plan)
        self._put(c, span, found, {}, grads)
        return dentry

    def _halved(self, span: Span) -> bool:
        """Whether a chunk without a frame is cut in two, whose halves may have one."""
        return self.looks and not self.steep and span[1] - span[0] > SMALLEST

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

    def _framed(self, c: Rows) -> Frame | None:
        if self.steep or not readable(c.g):
            return None
        total = self.memory.rows_first("total", self.precise, *c.g.shape).copy_(c.g)
        _sum_rows(total, 1 / LOG2, self.memory)
        return framed(total, self.falling, c.tensors, self.plan, self.memory, self.dtype)

    def _exactly(self, c: Rows) -> general.Chunk:
        tensors = {name: None if x is None else x.to(self.dtype) for name, x in c.tensors.items()}
        if c.write is not None:
            tensors["v"] = c.v * c.write
        return general.chunk_of(tensors, self.plan)

    def _adjoint(
        self,
        f: Frame,
        c: Rows,
        span: Span,
        states: tuple[Tensor, Tensor],
        do: Tensor,
        dexit: Tensor,
        grads: dict[str, Tensor],
    ) -> Tensor:
        """:meth:`backward` of a chunk in the frame."""
        plan, memory = self.plan, self.memory
        entry, leaving = states
        s = solve(f, c.v, c.write, entry, plan, memory, asks=False)
        at_end = torch.mul(leaving, dexit, out=memory.take("end", leaving, *leaving.shape)).sum(-1)
        dreads, dwrites, dv, dentry = adjoint(f, s, rows(do, *span), dexit, plan, memory)
        found = {"v": dv, "g": self._decay_gradient(f, dreads, dwrites, at_end)}
        places = {name: self._place(grads[name], span) for name in ("q", "k", "v")}

        def leaves_frame(name: str, dx: Tensor, factor: Tensor) -> None:
            place = places.get(name)
            out = memory.rows_first("d" + name, dx, *dx.shape) if place is None else place
            found[name] = torch.mul(dx, factor, out=out)

        leaves_frame("k", dwrites.last, f.down)
        leaves_frame("q", dreads.last, f.up_q)
        if f.predicts:
            leaves_frame("a", dreads.first, f.up_a)
        if f.general:
            leaves_frame("b", dwrites.first, f.down)
        self._put(c, span, found, places, grads)
        return dentry

    def _place(self, grad: Tensor, span: Span) -> Tensor | None:
        """The rows of a gradient as ``[N, C, .]``, where what is computed can be written there at once."""
        fits = grad.shape[0] == 1 and grad.shape[2] == self._batch[1] and grad.dtype == self.dtype
        return rows(grad, *span) if fits else None

    def _decay_gradient(self, f: Frame, dreads: Stack, dwrites: Stack, at_end: Tensor) -> Tensor:
        """Gradient of the log-decays ``[N, C, 1 or K]``: sums over all later rows of x dx of all that they scale."""
        memory = self.memory
        change = memory.take("change", dreads.last, *dreads.last.shape).zero_()
        seen = [self.plan.reads_now] if not f.predicts else [self.plan.predicts_now, self.plan.reads_now]
        for x, dx, now in zip(f.reads.blocks, dreads.blocks, seen, strict=True):
            if now:
                change.addcmul_(x, dx)
            else:  # read the decay up to the token before; the first token read none
                change[:, :-1].addcmul_(x[:, 1:], dx[:, 1:])
        for x, dx in zip(f.writes.blocks, dwrites.blocks, strict=True):
            change.addcmul_(x, dx, value=-1)
        change[:, -1] += at_end
        if f.down.shape[2] == 1:
            change = change.sum(-1, keepdim=True)
        total = memory.rows_first("dtotal", self.precise, *change.shape).copy_(change)
        return _sum_rows(total, 1.0, memory, later=True)

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
    within = torch.bmm(ones, parts, out=memory.take("within sums", parts, *parts.shape))
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
