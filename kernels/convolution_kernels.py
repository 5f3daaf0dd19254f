"""Kernels of the short causal convolution: forward, backward, one token in place.

Tokens of all rows form one list, so that a tile may span sequences; the place of a token is its number in its own
sequence, and places before 0 are found in the state. With W small every input is loaded W times, mostly from cache.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _at(bounds, segment, token, here, length, PACKED: tl.constexpr):
    """(row of states, its first token, its number of tokens) for each token; int64."""
    if PACKED:
        row = tl.load(segment + token, mask=here, other=0).to(tl.int64)
        first = tl.load(bounds + row).to(tl.int64)
        count = tl.load(bounds + row + 1).to(tl.int64) - first
    else:
        row = token // length
        first = row * length
        count = first * 0 + length
    return row, first, count


@triton.jit
def _inputs(x, state, row, first, count, place, here, channel, known, width, W: tl.constexpr):
    """The inputs at ``place`` of their sequences, of the state for -W < place < 0, zero elsewhere."""
    seen = (here & (place >= 0) & (place < count))[:, None] & known[None, :]
    old = (here & (place < 0) & (place > -W))[:, None] & known[None, :]
    new = tl.load(x + (first + place)[:, None] * width + channel[None, :], mask=seen, other=0.0)
    slot = row * (W - 1) + W - 1 + place
    before = tl.load(state + slot[:, None] * width + channel[None, :], mask=old, other=0.0)
    return new.to(tl.float32) + before.to(tl.float32)


@triton.jit
def _weight(weight, tap, channel, known, W: tl.constexpr):
    return tl.load(weight + channel * W + tap, mask=known, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _sum(
    x, weight, bias, state, row, first, count, place, here, channel, known, width,
    W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """What the activation is applied to, at ``place``."""
    total = tl.zeros([BT, BD], tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(W):
        earlier = _inputs(x, state, row, first, count, place - (W - 1) + tap, here, channel, known, width, W)
        total += _weight(weight, tap, channel, known, W) * earlier
    return total


@triton.jit
def _slope(
    dy, x, weight, bias, state, row, first, count, place, here, channel, known, width,
    W: tl.constexpr, SILU: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradient of the sum at ``place``; zero outside of the sequence."""
    inside = here & (place >= 0) & (place < count)
    mask = inside[:, None] & known[None, :]
    slope = tl.load(dy + (first + place)[:, None] * width + channel[None, :], mask=mask, other=0.0).to(
        tl.float32
    )
    if SILU:
        z = _sum(x, weight, bias, state, row, first, count, place, inside, channel, known, width, W, BT, BD)
        gate = tl.sigmoid(z)
        slope *= gate * (1 + z * (1 - gate))
    return slope


@triton.jit
def _later(
    total, FIRST: tl.constexpr,
    dy, x, weight, bias, state, row, first, count, place, here, channel, known, width,
    W: tl.constexpr, SILU: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """``total`` and what the sums FIRST to W - 1 places later send back to the input at ``place``."""
    for later in tl.range(FIRST, W):
        slope = _slope(
            dy, x, weight, bias, state, row, first, count, place + later, here, channel, known, width, W, SILU, BT, BD
        )  # fmt: skip
        total += _weight(weight, W - 1 - later, channel, known, W) * slope
    return total


@triton.jit
def convolution_forward_kernel(
    x, weight, bias, state, y, bounds, segment, tokens, length, width,
    W: tl.constexpr, SILU: tl.constexpr, PACKED: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """y ``[T, D]`` of all rows, by tiles of tokens and blocks of channels."""
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    here, known = token < tokens, channel < width
    row, first, count = _at(bounds, segment, token, here, length, PACKED)
    z = _sum(x, weight, bias, state, row, first, count, token - first, here, channel, known, width, W, BT, BD)
    z = z * tl.sigmoid(z) if SILU else z
    tl.store(y + token[:, None] * width + channel[None, :], z, mask=here[:, None] & known[None, :])


@triton.jit
def convolution_backward_kernel(
    dy, x, weight, bias, state, dx, parts, bounds, segment, tokens, length, width,
    W: tl.constexpr, SILU: tl.constexpr, PACKED: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dx, and this tile's share of the gradients of the W weights and the bias: parts ``[tiles, W + 1, D]``."""
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    here, known = token < tokens, channel < width
    row, first, count = _at(bounds, segment, token, here, length, PACKED)
    place = token - first
    parts += tl.program_id(0).to(tl.int64) * (W + 1) * width + channel
    slope = _slope(
        dy, x, weight, bias, state, row, first, count, place, here, channel, known, width, W, SILU, BT, BD
    )  # fmt: skip
    for tap in tl.static_range(W):
        earlier = _inputs(x, state, row, first, count, place - (W - 1) + tap, here, channel, known, width, W)
        tl.store(parts + tap * width, tl.sum(slope * earlier, axis=0), mask=known)
    tl.store(parts + W * width, tl.sum(slope, axis=0), mask=known)
    total = _later(
        _weight(weight, W - 1, channel, known, W) * slope, 1,
        dy, x, weight, bias, state, row, first, count, place, here, channel, known, width, W, SILU, BT, BD,
    )  # fmt: skip
    tl.store(dx + token[:, None] * width + channel[None, :], total, mask=here[:, None] & known[None, :])


@triton.jit
def convolution_state_backward_kernel(
    dy, x, weight, bias, state, dstate, bounds, tokens, length, width, slots,
    W: tl.constexpr, SILU: tl.constexpr, PACKED: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradient of the ``slots`` = rows * (W - 1) inputs of the state: those at places -(W - 1) .. -1."""
    slot = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    here, known = slot < slots, channel < width
    row = slot // (W - 1)
    place = slot - (row + 1) * (W - 1)
    if PACKED:
        first = tl.load(bounds + row, mask=here, other=0).to(tl.int64)
        count = tl.load(bounds + row + 1, mask=here, other=0).to(tl.int64) - first
    else:
        first = row * length
        count = first * 0 + length
    total = _later(
        tl.zeros([BT, BD], tl.float32), 0,
        dy, x, weight, bias, state, row, first, count, place, here, channel, known, width, W, SILU, BT, BD,
    )  # fmt: skip
    tl.store(dstate + slot[:, None] * width + channel[None, :], total, mask=here[:, None] & known[None, :])


@triton.jit
def convolution_step_kernel(
    x, weight, bias, state, y, rows, width,
    W: tl.constexpr, SILU: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One token of each of BT rows; each program moves its own part of the state by one place."""
    row = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    known = channel < width
    mask = (row < rows)[:, None] & known[None, :]
    now = tl.load(x + row[:, None] * width + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    z = _weight(weight, W - 1, channel, known, W) * now
    if bias is not None:
        z += tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    for slot in tl.static_range(W - 1):
        place = state + (row[:, None] * (W - 1) + slot) * width + channel[None, :]
        old = tl.load(place, mask=mask, other=0.0).to(tl.float32)
        z += _weight(weight, slot, channel, known, W) * old
        if slot > 0:
            tl.store(place - width, old, mask=mask)
    if W > 1:
        tl.store(state + (row[:, None] * (W - 1) + W - 2) * width + channel[None, :], now, mask=mask)
    z = z * tl.sigmoid(z) if SILU else z
    tl.store(y + row[:, None] * width + channel[None, :], z, mask=mask)
