"""Derivatives of scalar functions in every way that torch has, and by differences of values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Scalar = Callable[..., Tensor]
STEP = 1e-4  # of differences of fourth order in float64
WEIGHTS = ((1, 8), (-1, -8), (2, -1), (-2, 1))  # steps, and what is found there counts, in twelfths of a step


def gradient(loss: Scalar, values: Sequence[Tensor]) -> list[Tensor]:
    """By reverse mode; zero for what the loss does not depend on."""
    leaves = [x.detach().requires_grad_() for x in values]
    return _grad(loss(*leaves), leaves)


def _grad(y: Tensor, leaves: list[Tensor], graph: bool = False) -> list[Tensor]:
    if not y.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    found = torch.autograd.grad(y, leaves, create_graph=graph, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def directions(values: Sequence[Tensor]) -> list[Tensor]:
    """One for each of the values, as large as it."""
    return [torch.cos(3 * torch.arange(x.numel(), dtype=x.dtype)).view_as(x) for x in values]


def moved(values: Sequence[Tensor], along: Sequence[Tensor], step: float) -> list[Tensor]:
    """values + step along."""
    return [x.detach() + step * v for x, v in zip(values, along, strict=True)]


def difference_of_values(loss: Scalar, values: Sequence[Tensor], along: Sequence[Tensor]) -> Tensor:
    """The derivative of the loss in a direction, from its values."""
    found = [weight * loss(*moved(values, along, step * STEP)).detach() for step, weight in WEIGHTS]
    return torch.stack(found).sum(0) / (12 * STEP)


def difference_of_gradients(loss: Scalar, values: Sequence[Tensor], along: Sequence[Tensor]) -> list[Tensor]:
    """The second derivatives H v, from plain gradients."""
    found = [
        [weight * g for g in gradient(loss, moved(values, along, step * STEP))] for step, weight in WEIGHTS
    ]
    return [torch.stack(parts).sum(0) / (12 * STEP) for parts in zip(*found, strict=True)]


def reverse_over_reverse(
    loss: Scalar, values: Sequence[Tensor], along: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient with a graph of its own, and H v through it."""
    leaves = [x.detach().requires_grad_() for x in values]
    first = _grad(loss(*leaves), leaves, graph=True)
    return first, _grad(along_them(first, along), leaves)


def reverse_over_forward(
    loss: Scalar, values: Sequence[Tensor], along: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The tangent of the loss, and H v as the gradient of it."""
    leaves = [x.detach().requires_grad_() for x in values]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, v) for x, v in zip(leaves, along, strict=True)]
        tangent = forward_ad.unpack_dual(loss(*duals)).tangent
        return tangent.detach(), _grad(tangent, leaves)


def forward_over_reverse(
    loss: Scalar, values: Sequence[Tensor], along: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient, and H v as its tangent."""
    with forward_ad.dual_level():
        leaves = [x.detach().requires_grad_() for x in values]
        duals = [forward_ad.make_dual(x, v) for x, v in zip(leaves, along, strict=True)]
        first = _grad(loss(*duals), duals)
        pairs = [forward_ad.unpack_dual(g) for g in first]
        return (
            [p.primal.detach() for p in pairs],
            [torch.zeros_like(p.primal) if p.tangent is None else p.tangent.detach() for p in pairs],
        )


def functional(
    loss: Scalar, values: Sequence[Tensor], along: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient and H v by torch.func: jvp of grad."""
    every = torch.func.grad(loss, argnums=tuple(range(len(values))))
    first, second = torch.func.jvp(every, tuple(values), tuple(along))[:2]
    return list(first), list(second)


def along_them(gradients: Sequence[Tensor], along: Sequence[Tensor]) -> Tensor:
    """The derivative in a direction, of gradients."""
    return torch.stack([(g * v).sum() for g, v in zip(gradients, along, strict=True)]).sum()


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """All of them as one row."""
    return torch.cat([x.detach().flatten() for x in tensors])


MODES: dict[str, Callable[..., tuple[Any, list[Tensor]]]] = {
    "reverse over reverse": reverse_over_reverse,
    "reverse over forward": reverse_over_forward,
    "forward over reverse": forward_over_reverse,
    "torch.func": functional,
}
