"""Kernels of the selective scan: N states a channel, which never leave the chip.

.. code-block:: text

    h_t[d, n] = a_t[d, n] h_{t-1}[d, n] + step_t[d] u_t[d] into_t[n]      a = e^{step rate} or 1 + step rate
    y_t[d] = sum_n scale out_t[n] h_t[d, n] + skip[d] u_t[d]

A program owns a block of channels of one row, with all their states, and walks the tokens in tiles of BT; the steps of
a tile are joined by a scan in registers. rate, into and out are ``[D, N]``, or ``[B, T, N]`` where the flag says so; a
step that is absent is one. Forward keeps the state at the start of each tile. Backward walks the tiles from the end,
makes a tile's states again from the kept one, and runs l_t = dh_t + a_{t+1} l_{t+1} through the tile and over it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.elementwise import join, one_row, span


@triton.jit
def _by_token(pointer, token, shift, count, width, BT: tl.constexpr, BN: tl.constexpr, LOW: tl.constexpr):
    """Rows ``token + shift + [0, BT)`` of ``[T, width]``; zero past the end, and before row LOW of the tile."""
    time, column = tl.arange(0, BT), tl.arange(0, BN)
    good = (time >= LOW) & (token + shift + time < count)
    tile = time[:, None] * width + column[None, :]
    mask = good[:, None] & (column < width)[None, :]
    return tl.load(pointer + (token + shift) * width + tile, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _channels(
    pointer, token, shift, count, begin, width, BT: tl.constexpr, BD: tl.constexpr, LOW: tl.constexpr
):
    """As ``_by_token``, for the columns ``begin + [0, BD)``; ones in the place of a tensor that is absent."""
    time, column = tl.arange(0, BT), begin + tl.arange(0, BD)
    good = (time >= LOW) & (token + shift + time < count)
    mask = good[:, None] & (column < width)[None, :]
    if pointer is None:
        return tl.where(mask, 1.0, 0.0)
    tile = time[:, None] * width + column[None, :]
    return tl.load(pointer + (token + shift) * width + tile, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _decay(step, rate, EXPONENTIAL: tl.constexpr):
    """One where the step is zero: tokens that are not there change nothing."""
    exponent = step[:, :, None] * rate
    return tl.exp(exponent) if EXPONENTIAL else 1.0 + exponent


@triton.jit
def selective_forward_kernel(
    step, u, rate, into, out, skip, start, y, last, kept, bounds,
    length, width, states, scale,
    RATE_T: tl.constexpr, INTO_T: tl.constexpr, OUT_T: tl.constexpr, EXPONENTIAL: tl.constexpr,
    KEEP: tl.constexpr, PACKED: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """KEEP: write the state at the start of every tile to ``kept`` ``[tiles, D, N]``."""
    blocks = tl.cdiv(width, BD)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    begin = tl.program_id(0) % blocks * BD
    channel, state = begin + tl.arange(0, BD), tl.arange(0, BN)
    known = channel < width
    time = tl.arange(0, BT)
    first, count = span(bounds, row, length, PACKED)
    square = channel[:, None] * states + state[None, :]
    real = known[:, None] & (state < states)[None, :]
    u += first * width
    y += first * width
    if step is not None:
        step += first * width
    if RATE_T:
        rate += first * states
    else:
        rates = tl.load(rate + square, mask=real, other=0.0).to(tl.float32)[None, :, :]
    if INTO_T:
        into += first * states
    else:
        intos = tl.load(into + square, mask=real, other=0.0).to(tl.float32)[None, :, :]
    if OUT_T:
        out += first * states
    else:
        outs = tl.load(out + square, mask=real, other=0.0).to(tl.float32)[None, :, :]
    if skip is not None:
        skips = tl.load(skip + channel, mask=known, other=0.0).to(tl.float32)
    if KEEP:
        kept += _first_tile(first, row, length, BT, PACKED) * width * states
    carry = tl.load(start + row * width * states + square, mask=real, other=0.0).to(tl.float32)
    for t in tl.range(0, count, BT):
        if KEEP:
            tl.store(kept + t // BT * width * states + square, carry, mask=real)
        if RATE_T:
            rates = _by_token(rate, t, 0, count, states, BT, BN, 0)[:, None, :]
        if INTO_T:
            intos = _by_token(into, t, 0, count, states, BT, BN, 0)[:, None, :]
        if OUT_T:
            outs = _by_token(out, t, 0, count, states, BT, BN, 0)[:, None, :]
        s = _channels(step, t, 0, count, begin, width, BT, BD, 0)
        v = _channels(u, t, 0, count, begin, width, BT, BD, 0)
        product, total = tl.associative_scan(
            (_decay(s, rates, EXPONENTIAL), (s * v)[:, :, None] * intos), 0, join
        )
        h = product * carry[None, :, :] + total
        carry = one_row(h, time[:, None, None], BT - 1)
        read = scale * tl.sum(h * outs, axis=2)
        if skip is not None:
            read += skips[None, :] * v
        here = (t + time < count)[:, None] & known[None, :]
        tl.store(y + t * width + time[:, None] * width + channel[None, :], read, mask=here)
    tl.store(last + row * width * states + square, carry, mask=real)


@triton.jit
def _first_tile(first, row, length, BT: tl.constexpr, PACKED: tl.constexpr):
    """Where a row's tiles begin among those of all rows. Packed: a bound that needs no sum over the rows before."""
    if PACKED:
        return first // BT + row
    else:
        return row * tl.cdiv(length, BT)


@triton.jit
def selective_backward_kernel(
    dy, dlast, step, u, rate, into, out, skip, kept,
    dstep, du, drate, dinto, dout, dskip, dstart, bounds,
    length, width, states, scale, tokens,
    RATE_T: tl.constexpr, INTO_T: tl.constexpr, OUT_T: tl.constexpr, EXPONENTIAL: tl.constexpr,
    PACKED: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients. Those of ``[B, T, N]`` tensors are one part for each block of channels ``[blocks, B, T, N]``, those of
    ``[D, N]`` and ``[D]`` tensors one part for each row: sums outside, in a fixed order. ``tokens`` is B * T."""
    blocks = tl.cdiv(width, BD)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    begin = tl.program_id(0) % blocks * BD
    channel, state = begin + tl.arange(0, BD), tl.arange(0, BN)
    known = channel < width
    time = tl.arange(0, BT)
    first, count = span(bounds, row, length, PACKED)
    square = channel[:, None] * states + state[None, :]
    real = known[:, None] & (state < states)[None, :]
    tile = time[:, None] * width + channel[None, :]
    slim = time[:, None] * states + state[None, :]
    dy += first * width
    u += first * width
    du += first * width
    if step is not None:
        step += first * width
        dstep += first * width
    if RATE_T:
        rate += first * states
        drate += (block * tokens + first) * states
    else:
        rates = tl.load(rate + square, mask=real, other=0.0).to(tl.float32)[None, :, :]
        drates = tl.zeros([BD, BN], tl.float32)
    if INTO_T:
        into += first * states
        dinto += (block * tokens + first) * states
    else:
        intos = tl.load(into + square, mask=real, other=0.0).to(tl.float32)[None, :, :]
        dintos = tl.zeros([BD, BN], tl.float32)
    if OUT_T:
        out += first * states
        dout += (block * tokens + first) * states
    else:
        outs = tl.load(out + square, mask=real, other=0.0).to(tl.float32)[None, :, :]
        douts = tl.zeros([BD, BN], tl.float32)
    if skip is not None:
        skips = tl.load(skip + channel, mask=known, other=0.0).to(tl.float32)
        dskips = tl.zeros([BD], tl.float32)
    kept += _first_tile(first, row, length, BT, PACKED) * width * states
    carry = tl.load(dlast + row * width * states + square, mask=real, other=0.0).to(tl.float32)
    tiles = tl.cdiv(count, BT)
    for i in tl.range(0, tiles):
        t = (tiles - 1 - i) * BT
        here = (t + time < count)[:, None]
        s = _channels(step, t, 0, count, begin, width, BT, BD, 0)
        v = _channels(u, t, 0, count, begin, width, BT, BD, 0)
        g = _channels(dy, t, 0, count, begin, width, BT, BD, 0)
        if RATE_T:
            rates = _by_token(rate, t, 0, count, states, BT, BN, 0)[:, None, :]
        if INTO_T:
            intos = _by_token(into, t, 0, count, states, BT, BN, 0)[:, None, :]
        if OUT_T:
            outs = _by_token(out, t, 0, count, states, BT, BN, 0)[:, None, :]

        # The tile's states again. before: a_t h_{t-1}, or h_{t-1} where the decay is linear in its exponent. What a
        # token adds is taken one token late, so that no state is found as a difference of two others.
        added = _channels(step, t, -1, count, begin, width, BT, BD, 1)
        added *= _channels(u, t, -1, count, begin, width, BT, BD, 1)
        if INTO_T:
            add = added[:, :, None] * _by_token(into, t, -1, count, states, BT, BN, 1)[:, None, :]
        else:
            add = added[:, :, None] * intos
        a = _decay(s, rates, EXPONENTIAL)
        if EXPONENTIAL:
            product, before = tl.associative_scan((a, a * add), 0, join)
        else:
            s_before = _channels(step, t, -1, count, begin, width, BT, BD, 1)
            if RATE_T:
                r_before = _by_token(rate, t, -1, count, states, BT, BN, 1)[:, None, :]
                product, before = tl.associative_scan((_decay(s_before, r_before, False), add), 0, join)
            else:
                product, before = tl.associative_scan((_decay(s_before, rates, False), add), 0, join)
        entry = tl.load(kept + t // BT * width * states + square, mask=real, other=0.0)
        before += product * entry[None, :, :]
        h = (before if EXPONENTIAL else a * before) + (s * v)[:, :, None] * intos
        slope = scale * g[:, :, None] * h
        if OUT_T:
            tl.store(dout + t * states + slim, tl.sum(slope, axis=1), mask=here & (state < states)[None, :])
        else:
            douts += tl.sum(slope, axis=0)

        # The gradient of each state, from the end.
        s_after = _channels(step, t, 1, count, begin, width, BT, BD, 0)
        if RATE_T:
            a = _decay(s_after, _by_token(rate, t, 1, count, states, BT, BN, 0)[:, None, :], EXPONENTIAL)
        else:
            a = _decay(s_after, rates, EXPONENTIAL)
        product, back = tl.associative_scan((a, scale * g[:, :, None] * outs), 0, join, reverse=True)
        back += product * carry[None, :, :]
        carry = one_row(back, time[:, None, None], 0)
        written = tl.sum(back * intos, axis=2)
        if INTO_T:
            slope = back * (s * v)[:, :, None]
            tl.store(dinto + t * states + slim, tl.sum(slope, axis=1), mask=here & (state < states)[None, :])
        else:
            dintos += tl.sum(back * (s * v)[:, :, None], axis=0)
        exponent = back * before
        if RATE_T:
            slope = exponent * s[:, :, None]
            tl.store(drate + t * states + slim, tl.sum(slope, axis=1), mask=here & (state < states)[None, :])
        else:
            drates += tl.sum(exponent * s[:, :, None], axis=0)
        slope = s * written
        if skip is not None:
            slope += skips[None, :] * g
            dskips += tl.sum(g * v, axis=0)
        tl.store(du + t * width + tile, slope, mask=here & known[None, :])
        if step is not None:
            slope = tl.sum(exponent * rates, axis=2) + v * written
            tl.store(dstep + t * width + tile, slope, mask=here & known[None, :])

    if not RATE_T:
        tl.store(drate + row * width * states + square, drates, mask=real)
    if not INTO_T:
        tl.store(dinto + row * width * states + square, dintos, mask=real)
    if not OUT_T:
        tl.store(dout + row * width * states + square, douts, mask=real)
    if skip is not None:
        tl.store(dskip + row * width + channel, dskips, mask=known)
    s = _channels(step, 0, 0, tl.minimum(count, 1), begin, width, BT, BD, 0)
    if RATE_T:
        rates = _by_token(rate, 0, 0, tl.minimum(count, 1), states, BT, BN, 0)[:, None, :]
    a = one_row(_decay(s, rates, EXPONENTIAL), time[:, None, None], 0)
    tl.store(dstart + row * width * states + square, a * carry, mask=real)
