"""Chunks of the recurrences whose decay differs by channel, or that name the keys a and b of their predictions.

A chunk is computed in the frame that moves with its decay (:mod:`linrec.engines.matrix.frame`). Where the decay is too
strong for that the chunk is halved, and pieces of a few tokens are left to :mod:`linrec.engines.matrix.general`, which
forms the decay between any two tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from linrec.engines.checks import readable
from linrec.engines.matrix import general
from linrec.engines.matrix.frame import Frame, Solved, adjoint, framed, leave, solve
from linrec.engines.matrix.plan import Memory, Plan, Span, Tensors, put_rows, rows, sum_gradient
from linrec.engines.scans import exact

NAMES = ("q", "k", "v", "g", "a", "b", "write", "erase")
SMALLEST = 16  # tokens that are not halved further
BLOCK = 8  # rows of one block of a cumulative sum

Gradients = tuple[dict[str, Tensor], Tensor]


class Rows(NamedTuple):
    """One chunk, heads first ``[N, C, .]``: the tensors q, k, v, g, a, b with strengths multiplied in; strengths."""

    tensors: dict[str, Tensor | None]
    plain_v: Tensor
    write: Tensor | None
    erase: Tensor | None


def load(tensors: Tensors, span: Span, dtype: torch.dtype) -> Rows:
    """Cut one chunk out of the arguments."""
    value = tensors["v"]
    assert value is not None

    def cut(name: str) -> Tensor | None:
        x = tensors[name]
        if x is None:
            return None
        return rows(x if x.dim() == 4 else x[..., None], *span, value.shape[2] // x.shape[2]).to(dtype)

    found = {name: cut(name) for name in NAMES}
    write, erase = found.pop("write"), found.pop("erase")
    v, k = found["v"], found["k"]
    assert v is not None and k is not None
    if erase is not None:
        found["a"] = k * -erase
    if write is not None:
        found["v"] = v * write
    return Rows(found, v, write, erase)


def forward(
    plan: Plan, memory: Memory, tensors: Tensors, span: Span, state: Tensor, new_state: Tensor
) -> Tensor:
    """See :class:`linrec.engines.matrix.scan.Lane`."""
    c = load(tensors, span, state.dtype)
    f = _framed(c, plan, memory)
    if f is None:
        if span[1] - span[0] > SMALLEST and readable(state):
            first, second = halves(span)
            between = torch.empty_like(state)
            o = forward(plan, memory, tensors, first, state, between).clone()
            return torch.cat([o, forward(plan, memory, tensors, second, between, new_state)], dim=1)
        exactly = general.chunk_of(c.tensors, plan)
        return general.read_and_write(exactly, general.solve_chunk(exactly, state), state, new_state)
    s = solve(f, _values(c), state, plan, memory)
    leave(f, s, new_state)
    return s.output


def backward(
    plan: Plan,
    memory: Memory,
    tensors: Tensors,
    span: Span,
    states: tuple[Tensor, Tensor],
    do: Tensor,
    dexit: Tensor,
) -> Gradients:
    """See :class:`linrec.engines.matrix.scan.Lane`."""
    c = load(tensors, span, do.dtype)
    f = _framed(c, plan, memory)
    if f is not None:
        s = solve(f, _values(c), states[0], plan, memory)
        grads, dentry = _gradients(f, s, states[1], do, dexit, plan, memory)
    elif span[1] - span[0] > SMALLEST and readable(dexit):
        return _by_halves(plan, memory, tensors, span, states, do, dexit)
    else:
        exactly = general.chunk_of(c.tensors, plan)
        solved = general.solve_chunk(exactly, states[0])
        grads, dentry = general.chunk_adjoint(exactly, solved, *states, do, dexit, plan)
    return _strengths(c, grads), dentry


def halves(span: Span) -> tuple[Span, Span]:
    """Two spans that together are this one."""
    middle = (span[0] + span[1]) // 2
    return (span[0], middle), (middle, span[1])


def _by_halves(
    plan: Plan,
    memory: Memory,
    tensors: Tensors,
    span: Span,
    states: tuple[Tensor, Tensor],
    do: Tensor,
    dexit: Tensor,
) -> Gradients:
    """The gradients of a chunk from those of its halves; the state between them is computed again."""
    first, second = halves(span)
    size = first[1] - first[0]
    between = torch.empty_like(states[0])
    forward(plan, memory, tensors, first, states[0], between)
    late, dbetween = backward(plan, memory, tensors, second, (between, states[1]), do[:, size:], dexit)
    late = {name: x.clone() for name, x in late.items()}  # the other half uses the same memory
    early, dentry = backward(plan, memory, tensors, first, (states[0], between), do[:, :size], dbetween)
    return {name: torch.cat([early[name], late[name]], dim=1) for name in late}, dentry


def _values(c: Rows) -> Tensor:
    v = c.tensors["v"]
    assert v is not None
    return v


def _framed(c: Rows, plan: Plan, memory: Memory) -> Frame | None:
    g, k = c.tensors["g"], c.tensors["k"]
    assert g is not None and k is not None
    if not readable(g):
        return None
    total = memory.take("total", exact(g[:1, :1]), *g.shape).copy_(g)
    return framed(_summed(total, memory), c.tensors, plan, memory, k.dtype)


def _summed(x: Tensor, memory: Memory, later: bool = False) -> Tensor:
    """Sums over all rows up to each, or with ``later`` from each, in place: ``[N, C, .]``, contiguous.

    A product with ones is faster than ``cumsum``; in blocks, whose sums are summed in turn, it is the less work.
    """
    (batch, size, width), block = x.shape, BLOCK if x.shape[1] % BLOCK == 0 else x.shape[1]
    parts = x.view(-1, block, width)
    within = torch.bmm(_ones(parts, 0, later, memory), parts, out=memory.take("within", x, *parts.shape))
    if block == size:
        return within
    blocks = within.view(batch, -1, block, width)
    ends = blocks[:, :, 0 if later else -1]
    others = torch.bmm(_ones(ends, 1, later, memory), ends)
    return torch.add(blocks, others[:, :, None], out=x.view(blocks.shape)).view(x.shape)


def _ones(x: Tensor, skip: int, later: bool, memory: Memory) -> Tensor:
    """One where a row of the product with x sums a row of x; with ``skip`` 1 not the row itself."""
    size = x.shape[1]
    name = f"ones {size} {skip} {later}"
    if name not in memory:
        ones = x.new_ones(size, size)
        memory[name] = ones.triu(skip) if later else ones.tril(-skip)
    return memory[name].expand(x.shape[0], size, size)


def _gradients(
    f: Frame, s: Solved, leaving: Tensor, do: Tensor, dexit: Tensor, plan: Plan, memory: Memory
) -> Gradients:
    """Gradients of a chunk's tensors and of its entry state, out of the frame."""
    size = f.length
    at_end = torch.mul(leaving, dexit, out=memory.take("end", leaving, *leaving.shape)).sum(-1)
    dreads, dwrites, dv, dentry = adjoint(f, s, do, dexit, plan, memory)
    dg = _decay_gradient(f, dreads, dwrites, at_end, plan, memory)
    grads = {"q": dreads[:, -size:].mul_(f.up_q).mul_(plan.scale), "v": dv, "g": dg}
    grads["k"] = dwrites[:, -size:].mul_(f.down)
    if f.predicts:
        grads["a"] = dreads[:, :size].mul_(f.up_a)
    if f.general:
        grads["b"] = dwrites[:, :size].mul_(f.down)
    return grads, dentry


def _decay_gradient(
    f: Frame, dreads: Tensor, dwrites: Tensor, at_end: Tensor, plan: Plan, memory: Memory
) -> Tensor:
    """Gradient of the log-decays ``[N, C, 1 or K]``: sums over all later rows of x dx, as in the module's head."""
    size, narrow = f.length, f.down.shape[2] == 1

    def blocks(x: Tensor, dx: Tensor, name: str) -> tuple[Tensor, ...]:
        both = torch.mul(x, dx, out=memory.take(name, x, *x.shape))
        return (both.sum(-1, keepdim=True) if narrow else both).split(size, dim=1)

    written = blocks(f.writes, dwrites, "written dwritten")
    seen = (plan.predicts_now, plan.reads_now)[-1 if not f.predicts else 0 :]
    readers = zip(blocks(f.reads, dreads, "read dread"), seen, strict=True)
    at_end = at_end.sum(-1, keepdim=True) if narrow else at_end
    change = sum_gradient(exact(sum(written[1:], written[0])), readers, at_end)
    return _summed(change.contiguous(), memory, later=True).to(f.down.dtype)


def _strengths(c: Rows, grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the gradients of the strengths, and through them of k and v."""
    if c.erase is not None:
        k, da = c.tensors["k"], grads.pop("a")
        assert k is not None
        grads["erase"] = (k * da).sum(-1, keepdim=True).neg_()
        grads["k"].addcmul_(da, c.erase, value=-1)
    if c.write is not None:
        grads["write"] = (c.plain_v * grads["v"]).sum(-1, keepdim=True)
        grads["v"] = grads["v"] * c.write
    return grads


class ChannelLane:
    """See :class:`linrec.engines.matrix.scan.Lane`; states are ``[N, K, V]``, N = B HV."""

    NAMES = NAMES

    def __init__(self, plan: Plan, tensors: Tensors, dtype: torch.dtype):
        self.plan, self.tensors, self.memory = plan, tensors, Memory()

    def inner(self, state: Tensor) -> Tensor:
        """``[N, K, V]``."""
        return state.flatten(0, 1)

    def outer(self, state: Tensor) -> Tensor:
        """``[B, HV, K, V]``."""
        v = self.tensors["v"]
        assert v is not None
        return state.unflatten(0, (v.shape[0], -1))

    def forward(self, number: int, span: Span, state: Tensor, new_state: Tensor, o: Tensor) -> None:
        """Fills ``new_state`` and the chunk's rows of the output."""
        put_rows(o, forward(self.plan, self.memory, self.tensors, span, state, new_state), *span)

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
        part = rows(do, *span).contiguous()  # an expanded gradient would be multiplied matrix by matrix
        found, dentry = backward(self.plan, self.memory, self.tensors, span, states, part, dexit)
        for name, grad in found.items():
            put_rows(grads[name], grad, *span)
        return dentry

    def numbers(self) -> dict[str, Tensor]:
        """None: every chunk gives all of its own."""
        return {}
