"""h_t = a_t * h_{t-1} + x_t along time in few passes over memory, with its adjoint written out.

The sequence is cut into blocks of S tokens. Position after position, all blocks side by side, gives what each block
would be from an empty state, and the product of its decays; then block after block adds what entered it. That is
about 2 S + T / S calls and three passes, and no decay is divided by. Where one position alone is work enough for a
call (``WIDE``) there are no blocks: T calls and one pass.

The adjoint is the same recurrence from the right, lam_t = dh_t + conj(a_{t+1}) lam_{t+1}, and dx = lam,
da_t = lam_t conj(h_{t-1}).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

WIDE = 1 << 13  # numbers of one position from which their time exceeds that of a call


def recurrence(a: Tensor, x: Tensor, start: Tensor) -> Tensor:
    """Every h_t for any a, real or complex. a ``[1 or B, T, ...]``, x ``[B, T, ...]``, start ``[B, ...]`` is h_0."""
    if x.shape[1] == 1:  # one call, which graphs can be traced through
        return torch.addcmul(x, a, start[:, None])
    return _Recurrence.apply(a, x, start, False)


def recurrence_in_place(a: Tensor, x: Tensor, start: Tensor) -> Tensor:
    """The same, written over x; a is overwritten too. Outside of all derivatives and transforms.

    a ``[1 or B, T, ...]``, x ``[B, T, ...]``, start ``[B, ...]``.
    """
    return walk(a, x, start, False, h=x, product=a)


def walk(
    a: Tensor, x: Tensor, start: Tensor, reverse: bool, h: Tensor | None = None, product: Tensor | None = None
) -> Tensor:
    """The recurrence, or with ``reverse`` h_t = a_t * h_{t+1} + x_t from ``start`` behind the last token.

    a ``[1 or B, T, ...]``, x ``[B, T, ...]``, start ``[B, ...]``; memory for h like x, and for product like a.
    """
    h = torch.empty_like(x, memory_format=torch.contiguous_format) if h is None else h
    if start.numel() >= WIDE:
        _positions(a, x, h, start, reverse)
        return h
    product = torch.empty_like(a, memory_format=torch.contiguous_format) if product is None else product
    length = x.shape[1]
    block = max(1, 2 ** round(math.log2(max(length, 1)) / 2))
    whole = length - length % block
    parts = [(slice(0, whole), block), (slice(whole, length), length - whole)]
    for part, size in reversed(parts) if reverse else parts:
        if size and part.start < part.stop:
            start = _blocks(a[:, part], x[:, part], h[:, part], product[:, part], start, size, reverse)
    return h


def _positions(a: Tensor, x: Tensor, h: Tensor, last: Tensor, reverse: bool) -> None:
    rows = zip(*(t.unbind(1)[:: -1 if reverse else 1] for t in (a, x, h)), strict=True)
    for decay, new, now in rows:
        last = torch.addcmul(new, decay, last, out=now)


def _blocks(
    a: Tensor, x: Tensor, h: Tensor, product: Tensor, start: Tensor, size: int, reverse: bool
) -> Tensor:
    """Fill ``h``, and ``product`` with that of each block's decays, for whole blocks; returns the last state."""
    order = -1 if reverse else 1
    blocks, products = (t.unflatten(1, (-1, size)) for t in (h, product))
    rows = [t.unflatten(1, (-1, size)).unbind(2)[::order] for t in (a, x, h, product)]
    if h.data_ptr() != x.data_ptr():  # else they are in place already
        rows[2][0].copy_(rows[1][0])
        rows[3][0].copy_(rows[0][0])
    for (_, _, last, reached), (decay, new, now, so_far) in itertools.pairwise(zip(*rows, strict=True)):
        torch.addcmul(new, decay, last, out=now)
        torch.mul(decay, reached, out=so_far)
    for block, so_far in zip(blocks.unbind(1)[::order], products.unbind(1)[::order], strict=True):
        block.addcmul_(so_far, start[:, None])
        start = block[:, 0 if reverse else -1]
    return start


class _Recurrence(torch.autograd.Function):
    """Differentiable any number of times, in both modes, and under vmap."""

    @staticmethod
    def forward(a: Tensor, x: Tensor, start: Tensor, reverse: bool) -> Tensor:
        return walk(a, x, start, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, _, start, ctx.reverse = inputs
        ctx.save_for_backward(a, start, output)
        ctx.save_for_forward(a, start, output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        a, start, h = ctx.saved_tensors
        back = not ctx.reverse
        dx = _Recurrence.apply(
            _shifted(a, torch.zeros_like(a[:, :1]), back).conj(), dh, torch.zeros_like(start), back
        )
        da = dstart = None
        if ctx.needs_input_grad[0]:
            da = (dx * _shifted(h, start[:, None], ctx.reverse).conj()).sum_to_size(a.shape)
        if ctx.needs_input_grad[2]:
            first = slice(-1, None) if ctx.reverse else slice(0, 1)
            dstart = (a[:, first].conj() * dx[:, first]).sum(1)  # of one token, or of none
        return da, dx, dstart, None

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dx: Tensor | None, dstart: Tensor | None, _: None) -> Tensor:
        a, start, h = ctx.saved_tensors
        dx = torch.zeros_like(h) if dx is None else dx
        if da is not None:
            dx = dx + da * _shifted(h, start[:, None], ctx.reverse)
        return _Recurrence.apply(a, dx, torch.zeros_like(start) if dstart is None else dstart, ctx.reverse)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """Elementwise, so the mapped axis may as well be the last one."""
        *tensors, reverse = inputs
        a, x, start = (
            t.unsqueeze(-1) if dim is None else t.movedim(dim, -1)
            for t, dim in zip(tensors, in_dims, strict=False)
        )
        x, start = (t.expand(*t.shape[:-1], info.batch_size) for t in (x, start))
        return _Recurrence.apply(a, x, start, reverse), x.dim() - 1


def _shifted(x: Tensor, fill: Tensor, back: bool) -> Tensor:
    """Every row's neighbour: the row before, or with ``back`` the row after; ``fill`` ``[B, 1, ...]`` at the end."""
    return torch.cat([x[:, 1:], fill] if back else [fill, x[:, :-1]], dim=1)
