"""RMSNorm times an activated gate on a GPU, one pass over memory: ``torch.ops.linrec.gated_rms_norm``.

.. code-block:: text

    y = x rsqrt(mean x^2 + eps) w act(z),   or with ``gate_first``   u = x act(z),  y = u rsqrt(mean u^2 + eps) w

x and gate ``[..., width]`` (z, or None), weight ``[width]`` (w); act "silu" or "sigmoid"; the mean is over each of
``groups`` equal parts of the last dimension. Sums in float32, y in the dtype of x. Gradients are first-order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from linrec.kernels.elementwise import on_device
from linrec.kernels.first_order import first_order

# Numbers of a tile and rows of a program; the more rows, the fewer parts of the weight's gradient.
TILE = 2048
ROWS = 64


@triton.jit
def _gate(gate, tile, mask, SILU: tl.constexpr, CACHE: tl.constexpr):
    """(act(z), its derivative)."""
    z = tl.load(gate + tile, mask=mask, other=0.0, cache_modifier=CACHE).to(tl.float32)
    s = tl.sigmoid(z)
    if SILU:
        return z * s, s * (1 + z * (1 - s))
    else:
        return s, s * (1 - s)


@triton.jit
def norm_forward_kernel(
    x, weight, gate, y, rows, groups, width, eps,
    SILU: tl.constexpr, GATE_FIRST: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``width`` is that of a group; rows of a group are ``groups * width`` apart."""
    group = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BN)
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    known = column < width
    mask = (row < rows)[:, None] & known[None, :]
    tile = (row[:, None] * groups + group) * width + column[None, :]
    w = tl.load(weight + group * width + column, mask=known, other=0.0).to(tl.float32)[None, :]
    u = tl.load(x + tile, mask=mask, other=0.0).to(tl.float32)
    act = 1.0
    if gate is not None:
        act, _ = _gate(gate, tile, mask, SILU, "")
        if GATE_FIRST:
            u *= act
    r = tl.rsqrt(tl.sum(u * u, axis=1) / width + eps)[:, None]
    out = u * r * w
    if gate is not None and not GATE_FIRST:
        out *= act
    tl.store(y + tile, out, mask=mask)


@triton.jit
def norm_backward_kernel(
    dy, x, weight, gate, dx, parts, dgate, rows, groups, width, eps,
    SILU: tl.constexpr, GATE_FIRST: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """TILES tiles of rows one after another; their share of the weight's gradient goes to parts
    ``[programs, groups * width]``."""
    group = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BN)
    known = column < width
    total = tl.zeros([BN], tl.float32)
    for number in tl.range(0, TILES):
        row = (tl.program_id(0).to(tl.int64) * TILES + number) * BM + tl.arange(0, BM)
        mask = (row < rows)[:, None] & known[None, :]
        tile = (row[:, None] * groups + group) * width + column[None, :]
        u = tl.load(x + tile, mask=mask, other=0.0).to(tl.float32)
        slope = tl.load(dy + tile, mask=mask, other=0.0).to(tl.float32)
        if gate is not None:
            act, change = _gate(gate, tile, mask, SILU, "")
            if GATE_FIRST:
                u *= act
        w = tl.load(weight + group * width + column, mask=known, other=0.0).to(tl.float32)[None, :]
        r = tl.rsqrt(tl.sum(u * u, axis=1) / width + eps)[:, None]
        u *= r
        if gate is not None and not GATE_FIRST:
            tl.store(dgate + tile, slope * u * w * change, mask=mask)
            slope *= act
        total += tl.sum(slope * u, axis=0)
        slope *= w
        slope = r * (slope - u * (tl.sum(slope * u, axis=1) / width)[:, None])
        if gate is not None and GATE_FIRST:
            # Loaded once more, from cache: in registers, long rows would spill. (The compiler would join loads
            # that are the same in everything, the modifier included.)
            act, change = _gate(gate, tile, mask, SILU, ".ca")
            bare = tl.load(x + tile, mask=mask, other=0.0, cache_modifier=".ca").to(tl.float32)
            tl.store(dgate + tile, slope * bare * change, mask=mask)
            slope *= act
        tl.store(dx + tile, slope, mask=mask)
    tl.store(parts + (tl.program_id(0).to(tl.int64) * groups + group) * width + column, total, mask=known)


def forward(
    x: Tensor, weight: Tensor, gate: Tensor | None, eps: float, activation: str, gate_first: bool, groups: int
) -> Tensor:
    """y like x."""
    x, weight, gate = x.contiguous(), weight.contiguous(), None if gate is None else gate.contiguous()
    y = torch.empty_like(x)
    rows, width, config = _shape(x, groups)
    _launch(
        norm_forward_kernel, (triton.cdiv(rows, config["BM"]), groups),
        [x, weight, gate, y, rows, groups, width, eps],
        SILU=activation == "silu", GATE_FIRST=gate_first, **config,
    )  # fmt: skip
    return y


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, gate: Tensor | None,
    eps: float, activation: str, gate_first: bool, groups: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight and gate (of no elements if None), from dy like x."""
    dy, x, weight = dy.contiguous(), x.contiguous(), weight.contiguous()
    gate = None if gate is None else gate.contiguous()
    dx, dgate = torch.empty_like(x), x.new_empty(0) if gate is None else torch.empty_like(gate)
    rows, width, config = _shape(x, groups)
    tiles = max(ROWS // config["BM"], 1)
    programs = triton.cdiv(rows, tiles * config["BM"])
    parts = x.new_empty(programs, groups * width, dtype=torch.float32)
    _launch(
        norm_backward_kernel, (programs, groups),
        [dy, x, weight, gate, dx, parts, dgate, rows, groups, width, eps],
        SILU=activation == "silu", GATE_FIRST=gate_first, TILES=tiles, **config,
    )  # fmt: skip
    return dx, parts.sum(0).to(weight.dtype), dgate


def _shape(x: Tensor, groups: int) -> tuple[int, int, dict[str, Any]]:
    """Rows, width of a group, and the launch: at least one row a tile, 16 numbers a thread or more for long rows."""
    width = x.shape[-1] // groups
    columns = triton.next_power_of_2(width)
    config = {"BM": max(TILE // columns, 1), "BN": columns, "num_warps": min(max(columns // 512, 4), 16)}
    return x.numel() // max(x.shape[-1], 1), width, {**config, "enable_fp_fusion": True}


def _launch(
    kernel: triton.JITFunction, grid: tuple[int, int], arguments: list[Any], **constants: Any
) -> None:
    if grid[0]:
        with on_device(arguments[0]):
            kernel[grid](*arguments, **constants)


gated_rms_norm = torch.library.custom_op("linrec::gated_rms_norm", forward, mutates_args=())


@gated_rms_norm.register_fake
def _forward_like(
    x: Tensor, weight: Tensor, gate: Tensor | None, eps: float, activation: str, gate_first: bool, groups: int
) -> Tensor:
    return x.new_empty(x.shape)


gated_rms_norm_backward = torch.library.custom_op(
    "linrec::gated_rms_norm_backward", backward, mutates_args=()
)


@gated_rms_norm_backward.register_fake
def _backward_like(
    dy: Tensor, x: Tensor, weight: Tensor, gate: Tensor | None,
    eps: float, activation: str, gate_first: bool, groups: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dgate = x.new_empty(0) if gate is None else gate.new_empty(gate.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dgate


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, gate, *ctx.options = inputs
    ctx.save_for_backward(x, weight, gate)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, gate = ctx.saved_tensors
    dx, dweight, dgate = gated_rms_norm_backward(dy, x, weight, gate, *ctx.options)
    return dx, dweight, None if gate is None else dgate, None, None, None, None


gated_rms_norm.register_autograd(_gradients, setup_context=_setup)
first_order(gated_rms_norm_backward)
