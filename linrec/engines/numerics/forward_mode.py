"""Functions of torch that forward mode does not carry far enough, written out where it is on.

A backward pass through a tangent (or a tangent of a backward pass) needs the second derivative. In torch some tangents
hold fixed what depends on the arguments: the mean and the deviation in ``F.layer_norm``, the factors in
``torch.linalg.solve``. The derivative of such a tangent is wrong, without an error. Those of ``F.silu``, ``F.glu``,
``softmax`` and ``logcumsumexp`` raise one. Elementary calls have no such gap; outside of forward mode torch's own are
taken.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from linrec.engines.numerics.checks import transformed
from linrec.engines.numerics.derivatives import differentiable_again


def forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is open, by ``torch.func`` or by ``forward_ad``."""
    return forward_ad._current_level >= 0


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) of x ``[...]``."""
    return x * x.sigmoid() if forward_mode() else F.silu(x)


def glu(x: Tensor) -> Tensor:
    """``[..., 2 n] -> [..., n]``: the first half times the sigmoid of the second."""
    if not forward_mode():
        return F.glu(x, dim=-1)
    value, gate = x.chunk(2, dim=-1)
    return value * gate.sigmoid()


def softmax(x: Tensor) -> Tensor:
    """Over the last dimension of x ``[..., n]``."""
    if not forward_mode() or not x.shape[-1]:
        return x.softmax(-1)
    weights = (x - x.detach().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def logcumsumexp(x: Tensor) -> Tensor:
    """The logarithm of the sums of e^x, x ``[B, T, ...]``, over all earlier tokens and the token itself."""
    if not forward_mode():
        return x.logcumsumexp(1)
    reach = 1
    while reach < x.shape[1]:  # each row holds the sum of this many rows
        x = torch.cat([x[:, :reach], torch.logaddexp(x[:, reach:], x[:, :-reach])], dim=1)
        reach *= 2
    return x


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """x ``[..., n]`` without its mean, at unit variance (but for eps), over the last dimension.

    torch's own holds mean and deviation fixed in third derivatives, too, in whatever mode.
    """
    if transformed(x):
        return _normed(x, eps)[0]
    return differentiable_again(F.layer_norm(x, x.shape[-1:], eps=eps), partial(_normed, eps=eps), x)


def _normed(x: Tensor, eps: float) -> tuple[Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    return ((centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype),)


def solve(system: Tensor, right: Tensor) -> Tensor:
    """X with system X = right, system ``[..., n, n]``, right ``[..., n, m]``."""
    return torch.linalg.inv(system) @ right if forward_mode() else torch.linalg.solve(system, right)
