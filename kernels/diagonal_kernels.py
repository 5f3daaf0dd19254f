"""Kernels of the diagonal scan h_t = a_t h_{t-1} + x_t over ``[B, T, D]``, forward and backward, one pass over memory.

A program owns a block of channels of one row (a sequence, or a segment of a packed batch) and walks its tokens in
tiles; inside a tile the steps are joined by a scan in registers, between tiles the state is carried. Nothing is
divided by a decay, so any sign, zero, and decays above one are exact. Backward is the same scan from the end with the
decays shifted by one token: l_t = dh_t + conj(a_{t+1}) l_{t+1}, dx_t = l_t, da_t = l_t conj(h_{t-1}).
Complex numbers are pairs (real, imaginary) in memory, and widths count pairs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.elementwise import join, join_complex, one_row, span


@triton.jit
def _place(bounds, length, width, decay_token, PACKED: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr):
    """Where a program works: its row, the row's first token and number of tokens, its channels and which of them there
    are, the numbers of a tile's tokens, and a tile's offsets in ``[T, D]`` tensors and in the decay."""
    blocks = tl.cdiv(width, BD)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    known = channel < width
    first, count = span(bounds, row, length, PACKED)
    time = tl.arange(0, BT)
    tile = time[:, None] * width + channel[None, :]
    decay_tile = time[:, None] * decay_token + channel[None, :]
    return row, first, count, channel, known, time, tile, decay_tile


@triton.jit
def _factor(pointer, offset, mask, LOG: tl.constexpr):
    """Decays at ``offset``; one where masked."""
    a = tl.load(pointer + offset, mask=mask, other=0.0 if LOG else 1.0).to(tl.float32)
    return tl.exp(a) if LOG else a


@triton.jit
def _before(h, start, t, time, tile, width, here, LATE: tl.constexpr):
    """The state before each token of a tile: what LATE outputs are, otherwise the output one token earlier."""
    if LATE:
        return tl.load(h + t * width + tile, mask=here, other=0.0).to(tl.float32)
    else:
        inside = here & (t + time > 0)[:, None]
        before = tl.load(h + (t - 1) * width + tile, mask=inside, other=0.0).to(tl.float32)
        return tl.where(inside, before, start[None, :])


@triton.jit
def _start_gradient(dh, decay, carry, count, channel, width, LOG: tl.constexpr, LATE: tl.constexpr):
    """Of the state before the first token, where there is one; otherwise the carry, which is that of the last."""
    some = channel < tl.where(count > 0, width, 0)
    carry = _factor(decay, channel, some, LOG) * carry
    if LATE:
        carry += tl.load(dh + channel, mask=some, other=0.0).to(tl.float32)
    return carry


@triton.jit
def diagonal_forward_kernel(
    decay, x, start, h, last, bounds,
    length, width, decay_row, decay_token,
    LOG: tl.constexpr, LATE: tl.constexpr, PACKED: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """decay ``[B or 1, T or 1, D]`` by its two strides (0 where it is broadcast), its logarithm if LOG."""
    row, first, count, channel, known, time, tile, decay_tile = _place(
        bounds, length, width, decay_token, PACKED, BT, BD
    )
    x += first * width
    h += first * width
    decay += first * decay_token if PACKED else row * decay_row
    carry = tl.load(start + row * width + channel, mask=known, other=0.0).to(tl.float32)
    if LATE:
        tl.store(h + channel, carry, mask=channel < tl.where(count > 0, width, 0))
    for t in tl.range(0, count, BT, num_stages=STAGES):
        here = (t + time < count)[:, None] & known[None, :]
        a = _factor(decay, t * decay_token + decay_tile, here, LOG)
        new = tl.load(x + t * width + tile, mask=here, other=0.0).to(tl.float32)
        product, total = tl.associative_scan((a, new), 0, join)
        state = product * carry[None, :] + total
        if LATE:
            there = (t + 1 + time < count)[:, None] & known[None, :]
            tl.store(h + (t + 1) * width + tile, state, mask=there)
        else:
            tl.store(h + t * width + tile, state, mask=here)
        carry = one_row(state, time[:, None], BT - 1)
    tl.store(last + row * width + channel, carry, mask=known)


@triton.jit
def diagonal_backward_kernel(
    dh, dlast, decay, h, start, ddecay, dx, dstart, bounds,
    length, width, decay_row, decay_token,
    LOG: tl.constexpr, LATE: tl.constexpr, PACKED: tl.constexpr, GRADIENT: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """GRADIENT of the decay: 0 none, 1 a sum over each row's tokens ``[rows, D]``, 2 for every token ``[B, T, D]``."""
    row, first, count, channel, known, time, tile, decay_tile = _place(
        bounds, length, width, decay_token, PACKED, BT, BD
    )
    h, dh, dx = h + first * width, dh + first * width, dx + first * width
    ddecay += first * width if GRADIENT == 2 else row * width
    decay += first * decay_token if PACKED else row * decay_row
    carry = tl.load(dlast + row * width + channel, mask=known, other=0.0).to(tl.float32)
    begin = tl.load(start + row * width + channel, mask=known, other=0.0).to(tl.float32)
    summed = tl.zeros([BD], tl.float32)
    tiles = tl.cdiv(count, BT)
    for i in tl.range(0, tiles, num_stages=STAGES):
        t = (tiles - 1 - i) * BT
        here = (t + time < count)[:, None] & known[None, :]
        after = (t + 1 + time < count)[:, None] & known[None, :]
        a = _factor(decay, (t + 1) * decay_token + decay_tile, after, LOG)
        at, there = t + 1 if LATE else t, after if LATE else here
        seen = tl.load(dh + at * width + tile, mask=there, other=0.0).to(tl.float32)
        product, total = tl.associative_scan((a, seen), 0, join, reverse=True)
        back = product * carry[None, :] + total
        carry = one_row(back, time[:, None], 0)
        tl.store(dx + t * width + tile, back, mask=here)
        if GRADIENT > 0:
            slope = back * _before(h, begin, t, time, tile, width, here, LATE)
            if LOG:
                slope *= _factor(decay, t * decay_token + decay_tile, here, LOG)
            if GRADIENT == 2:
                tl.store(ddecay + t * width + tile, slope, mask=here)
            else:
                summed += tl.sum(tl.where(here, slope, 0.0), axis=0)
    if GRADIENT == 1:
        tl.store(ddecay + channel, summed, mask=known)
    carry = _start_gradient(dh, decay, carry, count, channel, width, LOG, LATE)
    tl.store(dstart + row * width + channel, carry, mask=known)


@triton.jit
def _pair(pointer, offset, mask, real):
    """The pairs at ``offset``; where masked, the number ``real``."""
    return (
        tl.load(pointer + 2 * offset, mask=mask, other=real).to(tl.float32),
        tl.load(pointer + 2 * offset + 1, mask=mask, other=0.0).to(tl.float32),
    )


@triton.jit
def _store_pair(pointer, offset, re, im, mask):
    tl.store(pointer + 2 * offset, re, mask=mask)
    tl.store(pointer + 2 * offset + 1, im, mask=mask)


@triton.jit
def _pair_before(h, start_re, start_im, t, time, tile, width, here, LATE: tl.constexpr):
    """As ``_before``, of pairs."""
    if LATE:
        return _pair(h, t * width + tile, here, 0.0)
    else:
        inside = here & (t + time > 0)[:, None]
        re, im = _pair(h, (t - 1) * width + tile, inside, 0.0)
        return tl.where(inside, re, start_re[None, :]), tl.where(inside, im, start_im[None, :])


@triton.jit
def _start_pair_gradient(dh, decay, re, im, count, channel, width, LATE: tl.constexpr):
    """As ``_start_gradient``, of pairs."""
    some = channel < tl.where(count > 0, width, 0)
    a_re, a_im = _pair(decay, channel, some, 1.0)
    re, im = a_re * re + a_im * im, a_re * im - a_im * re
    if LATE:
        d_re, d_im = _pair(dh, channel, some, 0.0)
        re, im = re + d_re, im + d_im
    return re, im


@triton.jit
def complex_forward_kernel(
    decay, x, start, h, last, bounds,
    length, width, decay_row, decay_token,
    LATE: tl.constexpr, PACKED: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As ``diagonal_forward_kernel``, for complex numbers; the decay itself, never its logarithm."""
    row, first, count, channel, known, time, tile, decay_tile = _place(
        bounds, length, width, decay_token, PACKED, BT, BD
    )
    x += 2 * first * width
    h += 2 * first * width
    decay += 2 * first * decay_token if PACKED else 2 * row * decay_row
    re, im = _pair(start, row * width + channel, known, 0.0)
    if LATE:
        _store_pair(h, channel, re, im, channel < tl.where(count > 0, width, 0))
    for t in tl.range(0, count, BT, num_stages=STAGES):
        here = (t + time < count)[:, None] & known[None, :]
        a_re, a_im = _pair(decay, t * decay_token + decay_tile, here, 1.0)
        x_re, x_im = _pair(x, t * width + tile, here, 0.0)
        p_re, p_im, s_re, s_im = tl.associative_scan((a_re, a_im, x_re, x_im), 0, join_complex)
        s_re += p_re * re[None, :] - p_im * im[None, :]
        s_im += p_re * im[None, :] + p_im * re[None, :]
        if LATE:
            there = (t + 1 + time < count)[:, None] & known[None, :]
            _store_pair(h, (t + 1) * width + tile, s_re, s_im, there)
        else:
            _store_pair(h, t * width + tile, s_re, s_im, here)
        re, im = one_row(s_re, time[:, None], BT - 1), one_row(s_im, time[:, None], BT - 1)
    _store_pair(last, row * width + channel, re, im, known)


@triton.jit
def complex_backward_kernel(
    dh, dlast, decay, h, start, ddecay, dx, dstart, bounds,
    length, width, decay_row, decay_token,
    LATE: tl.constexpr, PACKED: tl.constexpr, GRADIENT: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As ``diagonal_backward_kernel``, for complex numbers; gradients in PyTorch's convention."""
    row, first, count, channel, known, time, tile, decay_tile = _place(
        bounds, length, width, decay_token, PACKED, BT, BD
    )
    h, dh, dx = h + 2 * first * width, dh + 2 * first * width, dx + 2 * first * width
    ddecay += 2 * first * width if GRADIENT == 2 else 2 * row * width
    decay += 2 * first * decay_token if PACKED else 2 * row * decay_row
    re, im = _pair(dlast, row * width + channel, known, 0.0)
    begin_re, begin_im = _pair(start, row * width + channel, known, 0.0)
    sum_re, sum_im = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    tiles = tl.cdiv(count, BT)
    for i in tl.range(0, tiles, num_stages=STAGES):
        t = (tiles - 1 - i) * BT
        here = (t + time < count)[:, None] & known[None, :]
        after = (t + 1 + time < count)[:, None] & known[None, :]
        a_re, a_im = _pair(decay, (t + 1) * decay_token + decay_tile, after, 1.0)
        at, there = t + 1 if LATE else t, after if LATE else here
        d_re, d_im = _pair(dh, at * width + tile, there, 0.0)
        p_re, p_im, l_re, l_im = tl.associative_scan((a_re, -a_im, d_re, d_im), 0, join_complex, reverse=True)
        l_re += p_re * re[None, :] - p_im * im[None, :]
        l_im += p_re * im[None, :] + p_im * re[None, :]
        re, im = one_row(l_re, time[:, None], 0), one_row(l_im, time[:, None], 0)
        _store_pair(dx, t * width + tile, l_re, l_im, here)
        if GRADIENT > 0:
            b_re, b_im = _pair_before(h, begin_re, begin_im, t, time, tile, width, here, LATE)
            slope_re, slope_im = l_re * b_re + l_im * b_im, l_im * b_re - l_re * b_im
            if GRADIENT == 2:
                _store_pair(ddecay, t * width + tile, slope_re, slope_im, here)
            else:
                sum_re += tl.sum(tl.where(here, slope_re, 0.0), axis=0)
                sum_im += tl.sum(tl.where(here, slope_im, 0.0), axis=0)
    if GRADIENT == 1:
        _store_pair(ddecay, channel, sum_re, sum_im, known)
    re, im = _start_pair_gradient(dh, decay, re, im, count, channel, width, LATE)
    _store_pair(dstart, row * width + channel, re, im, known)
