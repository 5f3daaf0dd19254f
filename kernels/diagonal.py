"""The diagonal scan on a GPU as an operator of torch: ``torch.ops.linrec.diagonal_scan``.

.. code-block:: text

    h_t = a_t h_{t-1} + x_t        decay: a_t, or log a_t if ``log``;   ``late``: h_{t-1} comes back, not h_t

decay ``[B or 1, T or 1, D]``, x ``[B, T, D]``, start ``[B or segments, D]``, all with one more dimension of two (real
and imaginary part) if they are complex; ``bounds`` ``[segments + 1]`` for packed sequences in a batch of one. Any of
float32, float16 and bfloat16 in, sums in float32, h in the dtype of x, states float32. Gradients are first-order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from linrec.kernels.diagonal_kernels import (
    complex_backward_kernel,
    complex_forward_kernel,
    diagonal_backward_kernel,
    diagonal_forward_kernel,
)
from linrec.kernels.elementwise import on_device
from linrec.kernels.first_order import first_order

# Tokens and channels of a tile, warps, stages of the pipeline. One warp keeps a tile's scan inside a warp, and 32
# channels make enough programs of a usual batch and width.
REAL = {"BT": 16, "BD": 32, "num_warps": 1, "enable_fp_fusion": True}
COMPLEX = {**REAL, "BT": 8}
STAGES = 2


def forward(
    decay: Tensor, x: Tensor, start: Tensor, bounds: Tensor | None, log: bool, late: bool
) -> tuple[Tensor, Tensor]:
    """(h as x, last as start)."""
    decay, x, start = decay.contiguous(), x.contiguous(), start.contiguous()
    h, last = _forward_like(decay, x, start, bounds, log, late)
    _launch(
        complex_forward_kernel if x.dim() == 4 else diagonal_forward_kernel,
        [decay, x, start, h, last, bounds, x.shape[1], x.shape[2], *_strides(decay)],
        rows=start.shape[0], width=x.shape[2], log=log, LATE=late, PACKED=bounds is not None,
    )  # fmt: skip
    return h, last


def backward(
    dh: Tensor, dlast: Tensor, decay: Tensor, h: Tensor, start: Tensor, bounds: Tensor | None,
    log: bool, late: bool, decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of decay (of no elements if not wanted), x and start, from h ``[B, T, D]`` and what ``forward`` was
    given.

    dh like h, dlast like start.
    """
    dh, dlast, decay, h, start = (t.contiguous() for t in (dh, dlast, decay, h, start))
    rows, in_time = start.shape[0], decay.shape[1] == h.shape[1]
    shape = h.shape if in_time else (rows, 1, *h.shape[2:])
    slope = h.new_empty(shape if decay_gradient else 0, dtype=torch.float32)
    dx, dstart = torch.empty_like(h), torch.empty_like(start)
    _launch(
        complex_backward_kernel if h.dim() == 4 else diagonal_backward_kernel,
        [dh, dlast, decay, h, start, slope, dx, dstart, bounds, h.shape[1], h.shape[2], *_strides(decay)],
        rows=rows, width=h.shape[2], log=log, LATE=late, PACKED=bounds is not None,
        GRADIENT=decay_gradient * (1 + in_time),
    )  # fmt: skip
    if decay_gradient and decay.shape[0] < slope.shape[0]:
        slope = slope.sum(0, keepdim=True)
    return slope.to(decay.dtype), dx, dstart


def _strides(decay: Tensor) -> tuple[int, int]:
    """What a row and a token further costs, in channels; nothing where a contiguous decay has length one there."""
    _, length, width = decay.shape[:3]
    return (0 if decay.shape[0] == 1 else length * width), (0 if length == 1 else width)


def _launch(
    kernel: triton.JITFunction, arguments: list[Any], rows: int, width: int, log: bool, **flags: Any
) -> None:
    real = kernel in (diagonal_forward_kernel, diagonal_backward_kernel)
    config = REAL if real else COMPLEX
    if real:
        flags["LOG"] = log
    programs = rows * triton.cdiv(width, config["BD"])
    if programs:
        with on_device(arguments[0]):
            kernel[(programs,)](*arguments, **flags, **config, STAGES=STAGES)


diagonal_scan = torch.library.custom_op("linrec::diagonal_scan", forward, mutates_args=())


@diagonal_scan.register_fake
def _forward_like(
    decay: Tensor, x: Tensor, start: Tensor, bounds: Tensor | None, log: bool, late: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), start.new_empty(start.shape)


diagonal_scan_backward = torch.library.custom_op("linrec::diagonal_scan_backward", backward, mutates_args=())


@diagonal_scan_backward.register_fake
def _backward_like(
    dh: Tensor, dlast: Tensor, decay: Tensor, h: Tensor, start: Tensor, bounds: Tensor | None,
    log: bool, late: bool, decay_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    slope = decay.new_empty(decay.shape if decay_gradient else 0)
    return slope, h.new_empty(h.shape), start.new_empty(start.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    decay, _, start, bounds, ctx.log, ctx.late = inputs
    ctx.save_for_backward(decay, output[0], start, bounds)


def _gradients(ctx: Any, dh: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    decay, h, start, bounds = ctx.saved_tensors
    wanted = ctx.needs_input_grad[0]
    slope, dx, dstart = diagonal_scan_backward(dh, dlast, decay, h, start, bounds, ctx.log, ctx.late, wanted)
    return slope if wanted else None, dx, dstart, None, None, None


diagonal_scan.register_autograd(_gradients, setup_context=_setup)
first_order(diagonal_scan_backward)
