"""The short causal convolution on a GPU: ``torch.ops.linrec.short_convolution``, its gradients, and one token in place.

.. code-block:: text

    y_t = act(bias + sum_{i < W} weight_i x_{t - W + 1 + i})        act: silu, or nothing

x ``[B, T, D]``, weight ``[D, W]``, bias ``[D]`` or None, state ``[B or segments, W - 1, D]`` the inputs before;
``bounds`` ``[segments + 1]`` for packed sequences in a batch of one. Sums in float32, y in the dtype of x. The next
state is the caller's: it is made of the last inputs, not computed. Gradients are first-order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from linrec.kernels.convolution_kernels import (
    convolution_backward_kernel,
    convolution_forward_kernel,
    convolution_state_backward_kernel,
    convolution_step_kernel,
)
from linrec.kernels.elementwise import on_device
from linrec.kernels.first_order import first_order

# Tokens and channels of a tile, warps. Backward makes the sum before the activation W times, in smaller tiles.
FORWARD = {"BT": 32, "BD": 64, "num_warps": 4, "enable_fp_fusion": True}
BACKWARD = {**FORWARD, "BT": 16}


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, bounds: Tensor | None, silu: bool
) -> Tensor:
    """y as x."""
    x, weight, state = x.contiguous(), weight.contiguous(), state.contiguous()
    y = torch.empty_like(x)
    _launch(
        convolution_forward_kernel, FORWARD, x.shape[0] * x.shape[1],
        [x, weight, bias, state, y, *_rows(x, bounds), *_sizes(x)],
        W=weight.shape[1], SILU=silu, PACKED=bounds is not None,
    )  # fmt: skip
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    bounds: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias (of no elements if None) and state, from dy like x."""
    dy, x, weight, state = dy.contiguous(), x.contiguous(), weight.contiguous(), state.contiguous()
    dx, dstate = torch.empty_like(x), torch.empty_like(state)
    (tokens, _, width), taps = _sizes(x), weight.shape[1]
    parts = x.new_empty(_grid(tokens, width, BACKWARD)[0], taps + 1, width, dtype=torch.float32)
    flags = {"W": taps, "SILU": silu, "PACKED": bounds is not None}
    shared, slots = [dy, x, weight, bias, state], state.shape[0] * state.shape[1]
    _launch(
        convolution_backward_kernel, BACKWARD, tokens,
        [*shared, dx, parts, *_rows(x, bounds), *_sizes(x)], **flags,
    )  # fmt: skip
    _launch(
        convolution_state_backward_kernel, BACKWARD, slots,
        [*shared, dstate, bounds, *_sizes(x), slots], **flags,
    )  # fmt: skip
    dweight = parts[:, :-1].sum(0).T.contiguous().to(weight.dtype)
    dbias = x.new_empty(0) if bias is None else parts[:, -1].sum(0).to(bias.dtype)
    return dx, dweight, dbias, dstate


def step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> Tensor:
    """One token ``[B, 1, D]``, not differentiable; state ``[B, W - 1, D]``, contiguous, becomes the next in place."""
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    _launch(
        convolution_step_kernel, FORWARD, x.shape[0],
        [x, weight, bias, state, y, x.shape[0], x.shape[2]], W=weight.shape[1], SILU=silu,
    )  # fmt: skip
    return y


def _rows(x: Tensor, bounds: Tensor | None) -> list[Tensor | None]:
    """The bounds, and each token's segment."""
    if bounds is None:
        return [None, None]
    tokens = torch.arange(x.shape[1], device=x.device, dtype=bounds.dtype)
    return [bounds, torch.searchsorted(bounds, tokens, right=True) - 1]


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0] * x.shape[1], x.shape[1], x.shape[2]


def _grid(rows: int, width: int, config: dict[str, Any]) -> tuple[int, int]:
    return triton.cdiv(rows, config["BT"]), triton.cdiv(width, config["BD"])


def _launch(
    kernel: triton.JITFunction, config: dict[str, Any], rows: int, arguments: list[Any], **constants: Any
) -> None:
    """Over ``rows`` of tokens, or of states, of as many channels as the first argument has."""
    grid = _grid(rows, arguments[0].shape[2], config)
    if grid[0] * grid[1]:
        with on_device(arguments[0]):
            kernel[grid](*arguments, **constants, **config)


short_convolution = torch.library.custom_op("linrec::short_convolution", forward, mutates_args=())


@short_convolution.register_fake
def _forward_like(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, bounds: Tensor | None, silu: bool
) -> Tensor:
    return x.new_empty(x.shape)


short_convolution_backward = torch.library.custom_op(
    "linrec::short_convolution_backward", backward, mutates_args=()
)


@short_convolution_backward.register_fake
def _backward_like(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    bounds: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dbias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias, state.new_empty(state.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias, dstate = short_convolution_backward(dy, *ctx.saved_tensors, ctx.silu)
    return dx, dweight, None if ctx.saved_tensors[2] is None else dbias, dstate, None, None


short_convolution.register_autograd(_gradients, setup_context=_setup)
first_order(short_convolution_backward)


short_convolution_step_ = torch.library.custom_op(
    "linrec::short_convolution_step_", step, mutates_args=("state",)
)


@short_convolution_step_.register_fake
def _step_like(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> Tensor:
    return x.new_empty(x.shape)
