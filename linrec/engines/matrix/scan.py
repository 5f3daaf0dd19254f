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

from linrec.engines.matrix.plan import Memory, Plan, Span, Tensors, chunk_bounds, put_rows, rows

Plain = Callable[..., tuple[Tensor, Tensor]]


class Lane(Protocol):
    """One way to compute a chunk: :mod:`linrec.engines.matrix.scalar` or :mod:`linrec.engines.matrix.general`.

    ``tensors`` are named by ``NAMES``, the chunk is their tokens ``start .. stop``; states are ``[N, K, V]``, N = B HV.
    """

    NAMES: tuple[str, ...]

    def forward(
        self, plan: Plan, memory: Memory, tensors: Tensors, span: Span, state: Tensor, new_state: Tensor
    ) -> Tensor:
        """The chunk's output ``[N, C, V]``; fills ``new_state``, which is not ``state``."""

    def backward(
        self,
        plan: Plan,
        memory: Memory,
        tensors: Tensors,
        span: Span,
        states: tuple[Tensor, Tensor],
        do: Tensor,
        dexit: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients by name ``[N, C, .]`` and that of the entry state, from those of the output and the exit state.

        ``states`` are the entry and the exit state.
        """


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
        memory, states = Memory(), [state.flatten(0, 1)]
        for number, span in enumerate(chunk_bounds(v.shape[1], plan.chunk)):
            entry = states[-1]
            fresh = keep or number < 2
            states.append(torch.empty_like(entry) if fresh else states[-2])  # else two take turns
            put_rows(o, lane.forward(plan, memory, tensors, span, entry, states[-1]), *span)
        if keep:
            ctx.lane, ctx.plan, ctx.plain = lane, plan, plain
            ctx.save_for_backward(state, *values, *states)
        return o, states[-1].unflatten(0, state.shape[:2]).clone()

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
        memory, dstate = Memory(), dlast.flatten(0, 1)
        chunks = chunk_bounds(do.shape[1], ctx.plan.chunk)
        for span, *around in reversed(list(zip(chunks, states[:-1], states[1:], strict=True))):
            part = rows(do, *span)
            found, dstate = ctx.lane.backward(ctx.plan, memory, tensors, span, tuple(around), part, dstate)
            for name, target in grads.items():
                put_rows(target, found[name], *span)
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
