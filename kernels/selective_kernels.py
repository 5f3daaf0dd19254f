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
    else:  # without it, Triton would compile what follows for None as well
        tile = time[:, None] * width + column[None, :]
        return tl.load(pointer + (token + shift) * width + tile, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _decay(step, rate, EXPONENTIAL: tl.constexpr):
    """One where the step is zero: tokens that are not there change nothing."""
    exponent = step[:, :, None] * rate
    return tl.exp(exponent) if EXPONENTIAL else 1.0 + exponent


@triton.jit
def _block(width, states, BD: tl.constexpr, BN: tl.constexpr):
    """Where a program works: its row, its block of channels, the block's first one, which there are, and offsets and
    mask of the block in ``[D, N]`` tensors."""
    blocks = tl.cdiv(width, BD)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    channel, state = block * BD + tl.arange(0, BD), tl.arange(0, BN)
    square = channel[:, None] * states + state[None, :]
    real = (channel < width)[:, None] & (state < states)[None, :]
    return row, block.to(tl.int64), block * BD, channel, channel < width, square, real


@triton.jit
def _whole(pointer, square, real, BY_TOKEN: tl.constexpr):
    """A program's part of a ``[D, N]`` tensor, for all tokens; zero in the place of one by token."""
    if BY_TOKEN:
        return 0.0
    else:
        return tl.load(pointer + square, mask=real, other=0.0).to(tl.float32)[None, :, :]


@triton.jit
def _of_tile(
    pointer, whole, token, shift, count, states,
    BY_TOKEN: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """rate, into or out as a tile needs it: loaded as ``_by_token`` does, or the same for all tokens."""
    if BY_TOKEN:
        return _by_token(pointer, token, shift, count, states, BT, BN, LOW)[:, None, :]
    else:
        return whole


@triton.jit
def selective_forward_kernel(
    step, u, rate, into, out, skip, start, y, last, kept, bounds,
    length, width, states, scale,
    RATE_T: tl.constexpr, INTO_T: tl.constexpr, OUT_T: tl.constexpr, EXPONENTIAL: tl.constexpr,
    KEEP: tl.constexpr, PACKED: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """KEEP: write the state at the start of every tile to ``kept`` ``[tiles, D, N]``."""
    row, _, begin, channel, known, square, real = _block(width, states, BD, BN)
    time = tl.arange(0, BT)
    first, count = span(bounds, row, length, PACKED)
    u, y = u + first * width, y + first * width
    if step is not None:
        step += first * width
    rate_all, into_all = _whole(rate, square, real, RATE_T), _whole(into, square, real, INTO_T)
    out_all = _whole(out, square, real, OUT_T)
    rate, into, out = rate + first * states, into + first * states, out + first * states
    if skip is not None:
        skips = tl.load(skip + channel, mask=known, other=0.0).to(tl.float32)
    if KEEP:
        kept += _first_tile(first, row, length, BT, PACKED) * width * states
    carry = tl.load(start + row * width * states + square, mask=real, other=0.0).to(tl.float32)
    for t in tl.range(0, count, BT):
        if KEEP:
            tl.store(kept + t // BT * width * states + square, carry, mask=real)
        rates = _of_tile(rate, rate_all, t, 0, count, states, RATE_T, BT, BN, 0)
        intos = _of_tile(into, into_all, t, 0, count, states, INTO_T, BT, BN, 0)
        outs = _of_tile(out, out_all, t, 0, count, states, OUT_T, BT, BN, 0)
        s = _channels(step, t, 0, count, begin, width, BT, BD, 0)
        v = _channels(u, t, 0, count, begin, width, BT, BD, 0)
        a = _decay(s, rates, EXPONENTIAL)
        product, total = tl.associative_scan((a, (s * v)[:, :, None] * intos), 0, join)
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
def _states_again(
    step, u, rate, into, rate_all, into_all, rates, intos, s, v, entry, t, count, begin, width, states,
    RATE_T: tl.constexpr, INTO_T: tl.constexpr, EXPONENTIAL: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """(a_t h_{t-1}, or h_{t-1} where the decay is linear in its exponent; h_t) of a tile, from the state at its start.

    What a token adds is taken one token late, so that no state is found as a difference of two others.
    """
    s_before = _channels(step, t, -1, count, begin, width, BT, BD, 1)
    added = s_before * _channels(u, t, -1, count, begin, width, BT, BD, 1)
    add = added[:, :, None] * _of_tile(into, into_all, t, -1, count, states, INTO_T, BT, BN, 1)
    a = _decay(s, rates, EXPONENTIAL)
    if EXPONENTIAL:
        product, before = tl.associative_scan((a, a * add), 0, join)
    else:
        r_before = _of_tile(rate, rate_all, t, -1, count, states, RATE_T, BT, BN, 1)
        product, before = tl.associative_scan((_decay(s_before, r_before, False), add), 0, join)
    before += product * entry[None, :, :]
    return before, (before if EXPONENTIAL else a * before) + (s * v)[:, :, None] * intos


@triton.jit
def _back_through(
    step, rate, rate_all, dh, carry, t, count, begin, width, states,
    RATE_T: tl.constexpr, EXPONENTIAL: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The gradient of each state of a tile, from the end; ``carry`` is that of the first state behind it."""
    s_after = _channels(step, t, 1, count, begin, width, BT, BD, 0)
    r_after = _of_tile(rate, rate_all, t, 1, count, states, RATE_T, BT, BN, 0)
    product, back = tl.associative_scan((_decay(s_after, r_after, EXPONENTIAL), dh), 0, join, reverse=True)
    return back + product * carry[None, :, :]


@triton.jit
def _keep(
    pointer, total, slope, t, count, states, BY_TOKEN: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr
):
    """A tile of a gradient ``[BT, BD, BN]``: summed over channels and written, or added to ``total``."""
    if BY_TOKEN:
        time, state = tl.arange(0, BT), tl.arange(0, BN)
        mask = (t + time < count)[:, None] & (state < states)[None, :]
        tl.store(pointer + (t + time[:, None]) * states + state[None, :], tl.sum(slope, axis=1), mask=mask)
        return total
    else:
        return total + tl.sum(slope, axis=0)


@triton.jit
def _store_channels(pointer, x, t, count, begin, width, BT: tl.constexpr, BD: tl.constexpr):
    """Write a tile ``[BT, BD]`` of a ``[T, D]`` tensor."""
    time, channel = tl.arange(0, BT), begin + tl.arange(0, BD)
    mask = (t + time < count)[:, None] & (channel < width)[None, :]
    tl.store(pointer + t * width + (time[:, None] * width + channel[None, :]), x, mask=mask)


@triton.jit
def _store_sum(pointer, total, square, real, BY_TOKEN: tl.constexpr):
    """Write a row's part of the gradient of a ``[D, N]`` tensor; of one by token, all is written already."""
    if not BY_TOKEN:
        tl.store(pointer + square, total, mask=real)


@triton.jit
def _first_decay(
    step, rate, rate_all, count, begin, width, states,
    RATE_T: tl.constexpr, EXPONENTIAL: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The decay of a row's first token; one where there is none."""
    some = tl.minimum(count, 1)
    s = _channels(step, 0, 0, some, begin, width, BT, BD, 0)
    rates = _of_tile(rate, rate_all, 0, 0, some, states, RATE_T, BT, BN, 0)
    return one_row(_decay(s, rates, EXPONENTIAL), tl.arange(0, BT)[:, None, None], 0)


@triton.jit
def _tile_gradients(
    dy, step, u, rate, into, out, dstep, du, drate, dinto, dout, rate_all, into_all, out_all, skips, entry,
    carry, drates, dintos, douts, dskips, t, count, begin, width, states, scale,
    RATE_T: tl.constexpr, INTO_T: tl.constexpr, OUT_T: tl.constexpr, EXPONENTIAL: tl.constexpr, SKIP: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write or add the gradients of the tile at token t. Returns the sums and the gradient of its first state."""
    s = _channels(step, t, 0, count, begin, width, BT, BD, 0)
    v = _channels(u, t, 0, count, begin, width, BT, BD, 0)
    g = _channels(dy, t, 0, count, begin, width, BT, BD, 0)
    rates = _of_tile(rate, rate_all, t, 0, count, states, RATE_T, BT, BN, 0)
    intos = _of_tile(into, into_all, t, 0, count, states, INTO_T, BT, BN, 0)
    outs = _of_tile(out, out_all, t, 0, count, states, OUT_T, BT, BN, 0)
    before, h = _states_again(
        step, u, rate, into, rate_all, into_all, rates, intos, s, v, entry, t, count, begin, width, states,
        RATE_T, INTO_T, EXPONENTIAL, BT, BD, BN,
    )  # fmt: skip
    douts = _keep(dout, douts, scale * g[:, :, None] * h, t, count, states, OUT_T, BT, BN)
    back = _back_through(
        step, rate, rate_all, scale * g[:, :, None] * outs, carry, t, count, begin, width, states,
        RATE_T, EXPONENTIAL, BT, BD, BN,
    )  # fmt: skip
    written, exponent = tl.sum(back * intos, axis=2), back * before
    dintos = _keep(dinto, dintos, back * (s * v)[:, :, None], t, count, states, INTO_T, BT, BN)
    drates = _keep(drate, drates, exponent * s[:, :, None], t, count, states, RATE_T, BT, BN)
    slope = s * written
    if SKIP:
        slope += skips[None, :] * g
        dskips += tl.sum(g * v, axis=0)
    _store_channels(du, slope, t, count, begin, width, BT, BD)
    if step is not None:
        slope = tl.sum(exponent * rates, axis=2) + v * written
        _store_channels(dstep, slope, t, count, begin, width, BT, BD)
    return one_row(back, tl.arange(0, BT)[:, None, None], 0), drates, dintos, douts, dskips


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
    row, block, begin, channel, known, square, real = _block(width, states, BD, BN)
    first, count = span(bounds, row, length, PACKED)
    dy, u, du = dy + first * width, u + first * width, du + first * width
    if step is not None:
        step, dstep = step + first * width, dstep + first * width
    rate_all, into_all = _whole(rate, square, real, RATE_T), _whole(into, square, real, INTO_T)
    out_all = _whole(out, square, real, OUT_T)
    rate, into, out = rate + first * states, into + first * states, out + first * states
    skips, dskips = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    if skip is not None:
        skips = tl.load(skip + channel, mask=known, other=0.0).to(tl.float32)
    part, whole = (block * tokens + first) * states, row * width * states
    drate, dinto = drate + (part if RATE_T else whole), dinto + (part if INTO_T else whole)
    dout += part if OUT_T else whole
    drates, dintos = tl.zeros([BD, BN], tl.float32), tl.zeros([BD, BN], tl.float32)
    douts = tl.zeros([BD, BN], tl.float32)
    kept += _first_tile(first, row, length, BT, PACKED) * width * states
    carry = tl.load(dlast + whole + square, mask=real, other=0.0).to(tl.float32)
    for i in tl.range(0, tl.cdiv(count, BT)):
        t = (tl.cdiv(count, BT) - 1 - i) * BT
        entry = tl.load(kept + t // BT * width * states + square, mask=real, other=0.0)
        carry, drates, dintos, douts, dskips = _tile_gradients(
            dy, step, u, rate, into, out, dstep, du, drate, dinto, dout, rate_all, into_all, out_all, skips, entry,
            carry, drates, dintos, douts, dskips, t, count, begin, width, states, scale,
            RATE_T, INTO_T, OUT_T, EXPONENTIAL, skip is not None, BT, BD, BN,
        )  # fmt: skip
    _store_sum(drate, drates, square, real, RATE_T)
    _store_sum(dinto, dintos, square, real, INTO_T)
    _store_sum(dout, douts, square, real, OUT_T)
    if skip is not None:
        tl.store(dskip + row * width + channel, dskips, mask=known)
    a = _first_decay(step, rate, rate_all, count, begin, width, states, RATE_T, EXPONENTIAL, BT, BD, BN)
    tl.store(dstart + whole + square, a * carry, mask=real)
