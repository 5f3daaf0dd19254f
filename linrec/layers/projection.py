"""Projections as their modules compute them.

A module is called and never read: what stands in its place (an adapter, a quantised module), what is hooked to it and
how its weight is stored must count. Where reading the weight is faster, it is read only of a module of which nothing
can tell the difference.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from linrec.arguments import PLAIN
from linrec.engines.numerics.linear import fits, special_product

_FORWARD, _CALL = nn.Linear.forward, nn.Module.__call__
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def project(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` for x ``[..., width]``; one row of values alone by the fastest product on this CPU."""
    if type(module) is nn.Linear:
        product = special_product(x, module.out_features, module.in_features)
        if product is not None and bare(module) and fits(x, module.weight, module.bias):
            return product(x, module.weight, module.bias)
    return module(x)


def affine_map(module: nn.Module, width: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """(W ``[width, m]``, b ``[m]`` or None) of a module that maps x to x W + b, found by calling it.

    On unit vectors and zero, in the dtype and on the device of ``like [...]``: right for an adapter beside the
    weight, a quantised weight, a hook.
    """
    if bare(module):
        return module.weight.mT, module.bias
    vectors = torch.cat([like.new_zeros(1, width), torch.eye(width, dtype=like.dtype, device=like.device)])
    images = module(vectors)
    return images[1:] - images[:1], images[0]


def bare(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is exactly ``nn.Linear`` with an ordinary weight, nothing put around it or hooked to it."""
    return (
        type(module) is nn.Linear
        and type(module.weight) in PLAIN
        and (module.bias is None or type(module.bias) in PLAIN)
        and not any(module.__dict__[hooks] for hooks in _HOOKS)
        and "forward" not in module.__dict__
        and not modules._has_any_global_hook()
        and nn.Linear.forward is _FORWARD
        and nn.Module.__call__ is _CALL
    )
