"""The selective scan on a GPU as an operator of torch: ``torch.ops.linrec.selective_scan``.

.. code-block:: text

    h_t[d, n] = a_t[d, n] h_{t-1}[d, n] + step_t[d] u_t[d] into_t[n]      a = e^{step rate} or 1 + step rate
    y_t[d] = sum_n scale out_t[n] h_t[d, n] + skip[d] u_t[d]

step ``[B, T, D]`` or None (one), u ``[B, T, D]``; rate, into, out ``[D, N]`` or ``[B, T, N]`` each; skip ``[D]`` or
None; start ``[B or segments, D, N]``; ``bounds`` ``[segments + 1]`` for packed sequences in a batch of one. Any of
float32, float16 and bfloat16 in, sums in float32, y in the dtype of u, states float32. Gradients are first-order.
No tensor ``[B, T, D, N]`` exists anywhere; the backward pass needs the states at every 16th token (every 8th for more
than 16 states).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from linrec.kernels.elementwise import on_device
from linrec.kernels.first_order import first_order
from linrec.kernels.selective_kernels import selective_backward_kernel, selective_forward_kernel

# Channels times states of a tile, at the least, and warps. The more channels, the fewer parts of the gradients of
# ``[B, T, N]`` tensors are written and summed; the more numbers a thread holds, the more it spills.
FORWARD = {"square": 128, "num_warps": 4}
BACKWARD = {"square": 256, "num_warps": 8}


def tile(states: int) -> int:
    """Tokens of a tile, and between two kept states."""
    return 16 if states <= 16 else 8


def forward(
    step: Tensor | None, u: Tensor, rate: Tensor, into: Tensor, out: Tensor, skip: Tensor | None,
    start: Tensor, bounds: Tensor | None, scale: float, exponential: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(y as u, last as start, the states at the start of each tile: ``[tiles, D, N]``, of no rows unless ``keep``)."""
    tensors = _contiguous(step, u, rate, into, out, skip, start)
    y, last, kept = _forward_like(*tensors, bounds, scale, exponential, keep)
    _launch(
        selective_forward_kernel, FORWARD, start,
        [*tensors, y, last, kept, bounds, u.shape[1], *start.shape[1:], scale],
        **_flags(rate, into, out, exponential), KEEP=keep, PACKED=bounds is not None,
    )  # fmt: skip
    return y, last, kept


def backward(
    dy: Tensor, dlast: Tensor, step: Tensor | None, u: Tensor, rate: Tensor, into: Tensor, out: Tensor,
    skip: Tensor | None, kept: Tensor, bounds: Tensor | None, scale: float, exponential: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of step, u, rate, into, out, skip (of no elements where one is None) and start.

    dy like u, dlast ``[B or segments, D, N]``, kept ``[tiles, D, N]``.
    """
    dy, dlast, *tensors, kept = _contiguous(dy, dlast, step, u, rate, into, out, skip, kept)
    blocks = triton.cdiv(u.shape[2], _channels(BACKWARD, dlast.shape[2]))

    def parts(x: Tensor) -> Tensor:
        shape = (blocks, *x.shape) if x.dim() == 3 else (dlast.shape[0], *x.shape)
        return u.new_empty(shape, dtype=torch.float32)

    sums = [None if x is None else parts(x) for x in (rate, into, out, skip)]
    dstep = None if step is None else torch.empty_like(tensors[0])
    du, dstart = torch.empty_like(tensors[1]), torch.empty_like(dlast)
    _launch(
        selective_backward_kernel, BACKWARD, dlast,
        [dy, dlast, *tensors, kept, dstep, du, *sums, dstart, bounds,
         u.shape[1], *dlast.shape[1:], scale, u.shape[0] * u.shape[1]],
        **_flags(rate, into, out, exponential), PACKED=bounds is not None,
    )  # fmt: skip
    reduced = [
        u.new_empty(0) if x is None or part is None else part.sum(0).to(x.dtype)
        for x, part in zip((rate, into, out, skip), sums, strict=True)
    ]
    return [u.new_empty(0) if dstep is None else dstep, du, *reduced, dstart]


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x.contiguous() for x in tensors]


def _flags(rate: Tensor, into: Tensor, out: Tensor, exponential: bool) -> dict[str, bool]:
    by_token = {"RATE_T": rate.dim() == 3, "INTO_T": into.dim() == 3, "OUT_T": out.dim() == 3}
    return {**by_token, "EXPONENTIAL": exponential}


def _channels(config: dict[str, int], states: int) -> int:
    """Channels of a tile: as many as fill it with their states."""
    return max(config["square"] // triton.next_power_of_2(states), 1)


def _launch(
    kernel: triton.JITFunction, config: dict[str, int], state: Tensor, arguments: list[Any], **flags: bool
) -> None:
    rows, width, states = state.shape
    block = _channels(config, states)
    grid = (rows * triton.cdiv(width, block),)
    if grid[0]:
        with on_device(state):
            kernel[grid](
                *arguments, **flags, BT=tile(states), BD=block, BN=triton.next_power_of_2(states),
                num_warps=config["num_warps"], enable_fp_fusion=True,
            )  # fmt: skip


def tiles(u: Tensor, start: Tensor, bounds: Tensor | None) -> int:
    """Rows of the kept states; for packed sequences a bound that does not depend on where the segments end."""
    tokens = tile(start.shape[2])
    if bounds is None:
        return u.shape[0] * triton.cdiv(u.shape[1], tokens)
    return u.shape[1] // tokens + start.shape[0]


selective_scan = torch.library.custom_op("linrec::selective_scan", forward, mutates_args=())


@selective_scan.register_fake
def _forward_like(
    step: Tensor | None, u: Tensor, rate: Tensor, into: Tensor, out: Tensor, skip: Tensor | None,
    start: Tensor, bounds: Tensor | None, scale: float, exponential: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    kept = start.new_empty(tiles(u, start, bounds) if keep else 0, *start.shape[1:])
    return u.new_empty(u.shape), start.new_empty(start.shape), kept


selective_scan_backward = torch.library.custom_op(
    "linrec::selective_scan_backward", backward, mutates_args=()
)


@selective_scan_backward.register_fake
def _backward_like(
    dy: Tensor, dlast: Tensor, step: Tensor | None, u: Tensor, rate: Tensor, into: Tensor, out: Tensor,
    skip: Tensor | None, kept: Tensor, bounds: Tensor | None, scale: float, exponential: bool,
) -> list[Tensor]:  # fmt: skip
    return [
        u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (step, u, rate, into, out, skip, dlast)
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, _, bounds, ctx.scale, ctx.exponential, _ = inputs
    ctx.save_for_backward(*tensors, output[2], bounds)
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)  # zeros for the kept states would be as much memory as they are


def _gradients(ctx: Any, dy: Tensor | None, dlast: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, kept, bounds = ctx.saved_tensors
    dy = torch.zeros_like(tensors[1]) if dy is None else dy
    if dlast is None:
        rows = dy.shape[0] if bounds is None else bounds.shape[0] - 1
        dlast = kept.new_zeros(rows, *kept.shape[1:])
    found = selective_scan_backward(dy, dlast, *tensors, kept, bounds, ctx.scale, ctx.exponential)
    present = [*(x is not None for x in tensors), True]
    return *(g if there else None for g, there in zip(found, present, strict=True)), None, None, None, None


selective_scan.register_autograd(_gradients, setup_context=_setup)
first_order(selective_scan_backward)
