"""A short causal depthwise convolution on a CPU as a sum of W products, some tokens at a time, and its adjoint.

The tokens of one stretch stay in cache over all products; libraries' convolutions pass over the whole sequence, which
they copy into another layout first.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.arguments import PLAIN
from linrec.engines.numerics.checks import differentiated, readable, transformed
from linrec.engines.numerics.derivatives import adjoint, differentiated_again
from linrec.engines.numerics.forward_mode import silu as plain_silu
from linrec.engines.numerics.memory import fresh

STRETCH = 1 << 16  # numbers of one stretch of tokens
WIDE = (torch.float32, torch.float64)


def suits(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> bool:
    """Whether :func:`convolved` takes x ``[B, T, D]``, weight ``[D, W]``, bias ``[D]``, state ``[B, W - 1, D]``.

    On a CPU, of one wide dtype, without transforms or traces.
    """
    tensors = [x, weight, state] if bias is None else [x, weight, state, bias]
    return (
        all(type(t) in PLAIN and t.is_cpu and t.dtype is x.dtype for t in tensors)
        and x.dtype in WIDE
        and readable(x)
        and x.numel() > 0
        and not transformed(*tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> Tensor:
    """x ``[B, T, D]``, weight ``[D, W]``, bias ``[D]`` or None, state ``[B, W - 1, D]`` the inputs before x."""
    tensors = (x, weight, state) if bias is None else (x, weight, state, bias)
    if differentiated(*tensors):
        return _Convolved.apply(silu, x, weight, bias, state)
    return _forward(x, weight, bias, state, silu)


def plainly(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> Tensor:
    """As :func:`convolved`, in calls that can be differentiated any number of times.

    x ``[B, T, D]``, weight ``[D, W]``, bias ``[D]``, state ``[B, W - 1, D]``.
    """
    inputs = torch.cat((state.to(x.dtype), x), 1)
    y = F.conv1d(inputs.transpose(1, 2), weight[:, None], bias, groups=weight.shape[0]).transpose(1, 2)
    return plain_silu(y) if silu else y


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, silu: bool, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor
    ) -> Tensor:
        ctx.silu = silu
        ctx.save_for_backward(x, weight, bias, state)
        return _forward(x, weight, bias, state, silu)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        values: Any = ctx.saved_tensors
        silu = ctx.silu
        if differentiated_again(dy):
            return None, *adjoint(
                lambda x, weight, bias, state: (plainly(x, weight, bias, state, silu),), values, (dy,)
            )
        x, weight, bias, state = values
        return None, *_backward(x, weight, bias, state, silu, dy)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> Tensor:
    y, taps = fresh(x, x.shape, x.dtype), weight.T.contiguous()
    for start, stop in _stretches(x):
        part = _sum_of_products(_inputs(x, state, start, stop), taps, bias, y[:, start:stop])
        if silu:
            F.silu(part, inplace=True)
    return y


def _backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool, dy: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias and state; sums over time are kept by place in a stretch until the end."""
    kept, taps = state.shape[1], weight.T.contiguous()
    dinputs = x.new_zeros(x.shape[0], kept + x.shape[1], x.shape[2])
    stretches = _stretches(x)
    longest = (x.shape[0], stretches[0][1], x.shape[2])
    dtaps, dbias = x.new_zeros(len(taps), *longest), x.new_zeros(longest)
    for start, stop in stretches:
        inputs, d = _inputs(x, state, start, stop), dy[:, start:stop]
        count = stop - start
        if silu:
            d = torch.ops.aten.silu_backward(d, _sum_of_products(inputs, taps, bias))
        for tap, w in enumerate(taps):
            dinputs[:, start + tap : stop + tap].addcmul_(d, w)
            dtaps[tap, :, :count].addcmul_(d, inputs[:, tap : tap + count])
        dbias[:, :count].add_(d)
    dweight = dtaps.sum((1, 2)).T
    return dinputs[:, kept:], dweight, None if bias is None else dbias.sum((0, 1)), dinputs[:, :kept]


def _sum_of_products(inputs: Tensor, taps: Tensor, bias: Tensor | None, y: Tensor | None = None) -> Tensor:
    """inputs ``[B, L + W - 1, D]``, taps ``[W, D]`` -> ``[B, L, D]``, without the activation."""
    count = inputs.shape[1] - len(taps) + 1
    first = inputs[:, :count]
    y = torch.mul(first, taps[0], out=y) if bias is None else torch.addcmul(bias, first, taps[0], out=y)
    for tap in range(1, len(taps)):
        y.addcmul_(inputs[:, tap : tap + count], taps[tap])
    return y


def _inputs(x: Tensor, state: Tensor, start: int, stop: int) -> Tensor:
    """What the tokens of a stretch meet: themselves and the W - 1 inputs before them."""
    before = start - state.shape[1]
    return x[:, before:stop] if before >= 0 else torch.cat((state[:, start:], x[:, :stop]), 1)


def _stretches(x: Tensor) -> list[tuple[int, int]]:
    batch, length, width = x.shape
    size = min(max(STRETCH // (batch * width), 1), length)
    return [(start, min(start + size, length)) for start in range(0, length, size)]
