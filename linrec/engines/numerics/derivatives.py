"""Derivatives of results that are computed in one way and differentiated in another.

Adjoints that are written out (in place, into memory that is used again) and torch's fused kernels have no derivative
themselves. Where one is asked for, the same function in differentiable calls, the *plain* one, takes their place: it is
differentiated at the same values, with a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from linrec.engines.numerics.checks import transformed

Plain = Callable[..., tuple[Tensor, ...]]


def differentiated_again(*outer: Tensor) -> bool:
    """Whether a backward pass with the gradients ``outer`` has to be a function of its tensors, not only a value.

    Several gradients at once (``is_grads_batched``) count as such: what works in place cannot take them.
    """
    batched = torch._C._functorch.is_legacy_batchedtensor
    return torch.is_grad_enabled() or transformed(*outer) or any(batched(x) for x in outer)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Around work on the device of ``x [...]``: engines choose their own dtypes, in a backward pass as well: that may
    run within autocast."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def adjoint(
    plain: Plain, values: Sequence[Tensor | None], outer: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients of ``values`` from those of the outputs of ``plain(*values)``, as differentiable functions.

    They are partial derivatives: each of the values is a variable of its own, also where two of them are one tensor
    or one was computed from another. Outside of this function the graph connects them, and adds up.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad(), without_autocast(next(x for x in values if x is not None)):
        # Views: new variables, through which the result still depends on the tensors that they are views of.
        own = [None if x is None else x.view_as(x) for x in values]
        pairs = [(y, w) for y, w in zip(plain(*own), outer, strict=True) if w is not None and y.requires_grad]
        wanted = [x for x in own if x is not None and x.requires_grad]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in pairs],
                wanted,
                [w for _, w in pairs],
                create_graph=again,
                allow_unused=True,
                materialize_grads=True,
            )
            if pairs
            else [torch.zeros_like(x) for x in wanted]
        )
    return tuple(next(found) if x is not None and x.requires_grad else None for x in own)


def differentiable_again(result: Tensor, plain: Plain, *values: Tensor | None) -> Tensor:
    """``result [...]``, which is ``plain(*values)[0]`` computed by calls whose derivatives have no derivative.

    Its gradient goes through those calls, as it would; where a graph of the gradient is asked for, through ``plain``.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not result.requires_grad:
        return result
    return _Again.apply(plain, result, *values)


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plain: Plain, result: Tensor, *values: Tensor | None) -> Tensor:
        ctx.plain = plain
        ctx.save_for_backward(*values)
        return result.detach()  # not a view, which may not be changed in place

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        if differentiated_again(outer):
            return None, None, *adjoint(ctx.plain, ctx.saved_tensors, (outer,))
        return None, outer, *[None] * len(ctx.saved_tensors)
