"""The chunk algorithm with its adjoint written out: the fast path of reverse-mode training and of inference.

It walks the chunks in the public time-first layout, so that what one chunk touches stays in cache and nothing
of the length of the sequence is copied. Kept for the backward pass are the arguments and the states
between chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from linrec.engines.matrix.plan import Plan

Plain = Callable[..., tuple[Tensor, Tensor]]


class Lane(Protocol):
    """One way to compute chunks: :mod:`linrec.engines.matrix.scalar` or :mod:`linrec.engines.matrix.analytic`."""

    NAMES: tuple[str, ...]

    def forward(
        self, plan: Plan, state: Tensor, tensors: Any, keep: bool, o: Tensor
    ) -> tuple[Tensor, list[Tensor]]: ...

    def backward(
        self, plan: Plan, states: list[Tensor], tensors: Any, do: Tensor, dstate: Tensor, grads: Any
    ) -> Tensor: ...


class ChunkScan(torch.autograd.Function):
    """``ChunkScan.apply(lane, plan, plain, state, *tensors) -> (o, final state)``.

    Tensors of :class:`MatrixTerms` in the order of ``lane.NAMES``; state ``[B, HV, K, V]``. ``plain`` computes the
    same from the same tensors in differentiable calls; it serves second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, lane: Lane, plan: Plan, plain: Plain, state: Tensor, *values: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        tensors = dict(zip(lane.NAMES, values, strict=True))
        v = tensors["v"]
        assert v is not None
        o = v.new_empty(v.shape, dtype=state.dtype)
        keep = any(ctx.needs_input_grad)
        last, states = lane.forward(plan, state.flatten(0, 1), tensors, keep, o)
        if keep:
            ctx.lane, ctx.plan, ctx.plain = lane, plan, plain
            ctx.save_for_backward(state, *values, *states, last)
        return o, last.unflatten(0, state.shape[:2]).clone()

    @staticmethod
    def backward(ctx: Any, do: Tensor, dlast: Tensor) -> tuple[Any, ...]:
        state, *saved = ctx.saved_tensors
        names = ctx.lane.NAMES
        values, states = saved[: len(names)], saved[len(names) :]
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            return (None, None, None, *_through(ctx.plain, (state, *values), (do, dlast)))
        tensors = dict(zip(names, values, strict=True))
        grads = {
            name: torch.empty_like(x, memory_format=torch.contiguous_format)
            for name, x in tensors.items()
            if x is not None
        }
        do = do.contiguous()  # an expanded gradient (of a sum, say) would be multiplied matrix by matrix
        dstate = ctx.lane.backward(ctx.plan, states, tensors, do, dlast.flatten(0, 1), grads)
        return (None, None, None, dstate.unflatten(0, state.shape[:2]), *(grads.get(name) for name in names))


def _through(
    plain: Plain, values: tuple[Tensor | None, ...], outer: tuple[Tensor, Tensor]
) -> list[Tensor | None]:
    """The gradient as a differentiable function, by way of the plain path."""
    wanted = [x for x in values if x is not None and x.requires_grad]
    # The final state, say, does not depend on q: only outputs that lead somewhere can be asked.
    outputs, weights = zip(
        *[(y, w) for y, w in zip(plain(*values), outer, strict=True) if y.requires_grad], strict=True
    )
    found = iter(torch.autograd.grad(outputs, wanted, weights, create_graph=True, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in values]
