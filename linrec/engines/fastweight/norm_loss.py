"""The gradient that test-time training descends, of |LN(z) - target|^2 / 2, and the adjoint of this gradient.

With x = (z - mean z) / s, s^2 = var z + eps, and b = w (w x + bias - target), means over the channels:

.. code-block:: text

    y = (b - mean b - x mean(b x)) / s

    from dy:   u = dy / s;   db = u - mean u - x mean(u x)
               dx = w^2 db - u mean(b x) - b mean(u x)
               dz = (dx - mean dx - x (mean(x dx) + mean(y dy))) / s
               dtarget = -w db;   dw = (2 w x + bias - target) db;   dbias = w db
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linrec.engines.numerics.checks import transformed
from linrec.engines.numerics.derivatives import adjoint, differentiated_again
from linrec.engines.numerics.forward_mode import layer_norm

EPS = 1e-6


def normed(z: Tensor) -> Tensor:
    """z ``[..., K]`` without mean at unit variance."""
    return layer_norm(z, EPS)


def norm_loss_gradient(z: Tensor, target: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """d/dz of |LN(z) - target|^2 / 2; z, target ``[..., n, K]``, weight, bias ``[..., 1, K]``."""
    if transformed(z, target, weight, bias):
        return _in_calls(z, target, weight, bias)
    return _Gradient.apply(z, target, weight, bias)


def _in_calls(z: Tensor, target: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Differentiable in every mode, any number of times."""
    centred = z - z.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    x = centred / deviation
    back = (weight * x + bias - target) * weight
    return (back - back.mean(-1, keepdim=True) - x * (back * x).mean(-1, keepdim=True)) / deviation


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, target: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, mean, rate = torch.native_layer_norm(z, z.shape[-1:], None, None, EPS)
        off = torch.addcmul(bias, weight, x).sub_(target)
        back, wanted = off * weight, [True, False, False]
        y = torch.ops.aten.native_layer_norm_backward(back, z, z.shape[-1:], mean, rate, None, None, wanted)[
            0
        ]
        ctx.save_for_backward(z, target, weight, bias, x, rate, off, y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, x, rate, off, y = ctx.saved_tensors
        if differentiated_again(dy):
            return adjoint(lambda *values: (_in_calls(*values),), inputs, (dy,))
        weight, bias = inputs[2:]
        u, back = dy * rate, off * weight
        along = _mean(u, x)
        db = torch.addcmul(u - u.mean(-1, keepdim=True), along, x, value=-1)
        wdb = weight * db
        dx = torch.addcmul(weight * wdb, u, _mean(back, x), value=-1).addcmul_(back, along, value=-1)
        dx.sub_(dx.mean(-1, keepdim=True) + x * (_mean(x, dx) + _mean(y, dy)))
        dweight = torch.addcmul(off, weight, x).mul_(db)
        return dx * rate, -wdb, dweight.sum_to_size(weight.shape), wdb.sum_to_size(bias.shape)


def _mean(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).mean(-1, keepdim=True)
