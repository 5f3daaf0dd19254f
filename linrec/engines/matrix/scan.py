"""The chunk algorithm with its adjoint written out: the fast path of reverse-mode training and of inference.

It takes chunk after chunk in the public time-first layout, so that what one chunk touches stays in cache and nothing
of the length of the sequence is copied. Kept for the backward pass are the arguments and the states
between chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from linrec.engines.matrix.chunk import chunkwise_plain
from linrec.engines.matrix.plan import Plan, Span, Tensors, chunk_bounds
from linrec.engines.matrix.terms import MatrixTerms
from linrec.engines.numerics.derivatives import Plain, adjoint, differentiated_again
from linrec.engines.numerics.memory import fresh
from linrec.engines.numerics.products import fitting_products
from linrec.rule import Call


class ChunkMethod(Protocol):
    """One way to compute chunks, for one pass over a sequence: :mod:`linrec.engines.matrix.scalar` or ``channel``.

    ``tensors`` are named by ``NAMES``; chunk ``index`` is their tokens ``span``.
    """

    NAMES: ClassVar[tuple[str, ...]]

    def __init__(self, plan: Plan, tensors: Tensors, dtype: torch.dtype): ...

    def inner(self, h: Tensor) -> Tensor:
        """A state ``[B, HV, K, V]`` in the layout of this method."""

    def outer(self, h: Tensor) -> Tensor:
        """The inverse of :meth:`inner`."""

    def forward(self, index: int, span: Span, h: Tensor, h_next: Tensor, o: Tensor) -> None:
        """Fills ``h_next``, which is not ``h``, and the chunk's rows of the output ``[B, T, HV, V]``."""

    def backward(
        self,
        index: int,
        span: Span,
        h: Tensor,
        do: Tensor,
        dh_next: Tensor,
        grads: dict[str, Tensor],
    ) -> Tensor:
        """The gradient of the entry state, from those of the output ``[B, T, HV, V]`` and of the exit state.

        Fills the chunk's rows of ``grads``; without ``g`` in it, that is not wanted. ``h`` is the entry state. Called
        from the last chunk to the first.
        """

    def gate_gradients(self) -> dict[str, Tensor]:
        """Gradients ``[B, T, HV]`` that come of all chunks together, by name."""


def chunkwise(
    method: type[ChunkMethod], terms: MatrixTerms, state: Tensor, call: Call
) -> tuple[Tensor, Tensor]:
    """Chunk by chunk, in this way. Returns (o ``[B, T, HV, V]``, final state ``[B, HV, K, V]``)."""

    def plain(state: Tensor, *values: Tensor | None) -> tuple[Tensor, Tensor]:
        rest: dict[str, Any] = {"bonus": None, "skip": None, **dict(zip(method.NAMES, values, strict=True))}
        return chunkwise_plain(replace(terms, **rest), state, call)

    o, last = ChunkScan.apply(
        method, Plan.of(terms, call), plain, state, *(getattr(terms, name) for name in method.NAMES)
    )
    o = terms.with_bonus(o, call.scale)
    return (o if "skip" in method.NAMES else terms.skipped(o)), last


class ChunkScan(torch.autograd.Function):
    """``ChunkScan.apply(method, plan, plain, state, *tensors) -> (o, final state)``.

    Tensors of :class:`MatrixTerms` in the order of ``method.NAMES``; state ``[B, HV, K, V]``. ``plain`` computes the
    same from the same tensors in differentiable calls; it serves second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, method: type[ChunkMethod], plan: Plan, plain: Plain, state: Tensor, *values: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        tensors = dict(zip(method.NAMES, values, strict=True))
        v = tensors["v"]
        assert v is not None
        o = fresh(v, v.shape, state.dtype)
        keep = any(ctx.needs_input_grad)
        chunks = chunk_bounds(v, plan.chunk)
        work = method(plan, tensors, state.dtype)
        h = work.inner(state)
        # Where nothing is kept two take turns.
        states = fresh(state, (len(chunks) if keep else 2, *h.shape), state.dtype)

        def first_chunk() -> None:
            work.forward(0, chunks[0], h, states[0], o)

        with _fitting_products(method, plan, state, first_chunk if chunks else None):
            for index, span in enumerate(chunks):
                h_next = states[index if keep else index % 2]
                work.forward(index, span, h, h_next, o)
                h = h_next
        if keep:
            ctx.method, ctx.plan, ctx.plain = method, plan, plain
            ctx.save_for_backward(state, *values, states)
        return o, work.outer(h).clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, do: Tensor, dlast: Tensor) -> tuple[Any, ...]:
        state, *values, states = ctx.saved_tensors
        names = ctx.method.NAMES
        if differentiated_again(do, dlast):
            return (None, None, None, *adjoint(ctx.plain, (state, *values), (do, dlast)))
        tensors = dict(zip(names, values, strict=True))
        chunks = chunk_bounds(do, ctx.plan.chunk)
        new = fresh if chunks else _zeros
        wanted = {
            name for name, needs in zip(names, ctx.needs_input_grad[4:], strict=True) if needs or name != "g"
        }
        grads = {n: new(x, x.shape, x.dtype) for n, x in tensors.items() if x is not None and n in wanted}
        work = ctx.method(ctx.plan, tensors, state.dtype)
        entries, dstate = (work.inner(state), *states.unbind(0)), work.inner(dlast)
        with _fitting_products(ctx.method, ctx.plan, state):
            for index, span in reversed(list(enumerate(chunks))):
                dstate = work.backward(index, span, entries[index], do, dstate, grads)
        for name, whole in work.gate_gradients().items():
            if name in grads:
                grads[name].copy_(whole)
        return (None, None, None, work.outer(dstate), *(grads.get(name) for name in names))


def _zeros(like: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """For parameters without a time axis, whose gradients no chunk fills where there is none."""
    return like.new_zeros(shape, dtype=dtype)


def _fitting_products(
    method: type[ChunkMethod], plan: Plan, state: Tensor, work: Callable[[], None] | None = None
) -> AbstractContextManager[None]:
    """For heads and chunks of this size; numbers of heads that are alike are one size."""
    batch, heads, width, values = state.shape
    alike = 1 << max(batch * heads - 1, 0).bit_length()
    sizes = (f"{alike} heads", f"K={width}", f"V={values}", f"C={plan.chunk}")
    return fitting_products(state, f"chunks of {method.__name__}", sizes, work)
