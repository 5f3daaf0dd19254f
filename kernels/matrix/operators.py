"""The matrix engine on a GPU as operators of torch: ``torch.ops.linrec.matrix_scan`` and ``matrix_step_``.

See :class:`linrec.engines.matrix.terms.MatrixTerms` for the arguments. Any of float32, float16 and bfloat16 in, sums
and states in float32. Gradients are first-order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linrec.kernels.first_order import first_order
from linrec.kernels.matrix.backward import matrix_backward
from linrec.kernels.matrix.forward import forward, step_
from linrec.kernels.matrix.prepare import default_chunk

ARGUMENTS = ("q", "k", "v", "g", "a", "b", "bonus", "write", "erase", "state")  # those that have gradients

matrix_scan = torch.library.custom_op("linrec::matrix_scan", forward, mutates_args=())
matrix_step_ = torch.library.custom_op("linrec::matrix_step_", step_, mutates_args=("state",))


@matrix_scan.register_fake
def _forward_like(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, a: Tensor | None, b: Tensor | None, bonus: Tensor | None,
    write: Tensor | None, erase: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None, scale: float,
    chunk: int | None, predict: str, readout: str, dtype: torch.dtype, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    general, delta = b is not None, a is not None or erase is not None
    channel = g is not None and g.dim() == 4
    rows = (*v.shape[:3], chunk or default_chunk(q, v, g, a, b, erase))
    kept = [
        v.new_empty(rows if keep and there else 0) for there in (delta, channel or general, general, general)
    ]
    sequences = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return (
        v.new_empty(v.shape, dtype=dtype),
        v.new_empty((sequences, v.shape[2], k.shape[3], v.shape[3]), dtype=torch.float32),
        kept[0], kept[1], kept[2], kept[3],
    )  # fmt: skip


@matrix_step_.register_fake
def _step_like(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, a: Tensor | None, b: Tensor | None, bonus: Tensor | None,
    write: Tensor | None, erase: Tensor | None, state: Tensor, scale: float, predict: str, readout: str,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return v.new_empty(v.shape, dtype=dtype)


def backward(
    do: Tensor | None, dlast: Tensor | None, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, a: Tensor | None,
    b: Tensor | None, bonus: Tensor | None, write: Tensor | None, erase: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, kept: list[Tensor], scale: float, chunk: int | None, predict: str, readout: str,
) -> list[Tensor]:  # fmt: skip
    """Gradients of those of :data:`ARGUMENTS` that are there."""
    found = matrix_backward(
        torch.zeros_like(v) if do is None else do, dlast, q, k, v, g, a, b, bonus, write, erase, state, cu_seqlens,
        scale, chunk, predict, readout, [x if x.numel() else None for x in kept],
    )  # fmt: skip
    return [x for x in found if x is not None]


matrix_scan_backward = torch.library.custom_op("linrec::matrix_scan_backward", backward, mutates_args=())


@matrix_scan_backward.register_fake
def _backward_like(
    do: Tensor | None, dlast: Tensor | None, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, a: Tensor | None,
    b: Tensor | None, bonus: Tensor | None, write: Tensor | None, erase: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, kept: list[Tensor], scale: float, chunk: int | None, predict: str, readout: str,
) -> list[Tensor]:  # fmt: skip
    given = (q, k, v, g, a, b, bonus, write, erase, state)
    return [x.new_empty(x.shape) for x in given if x is not None]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    last = len(ARGUMENTS) + 1  # cu_seqlens
    ctx.scale, ctx.chunk, ctx.predict, ctx.readout, *_ = inputs[last:]
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:last], *output[2:])


def _gradients(ctx: Any, do: Tensor | None, dlast: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    given = len(ARGUMENTS)
    tensors, kept = ctx.saved_tensors[: given + 1], list(ctx.saved_tensors[given + 1 :])
    options = [None] * 7  # cu_seqlens and what follows
    if do is None and dlast is None:
        return (*[None] * given, *options)
    found = iter(
        matrix_scan_backward(do, dlast, *tensors, kept, ctx.scale, ctx.chunk, ctx.predict, ctx.readout)
    )
    return (*(None if x is None else next(found) for x in tensors[:given]), *options)


matrix_scan.register_autograd(_gradients, setup_context=_setup)
first_order(matrix_scan_backward)
