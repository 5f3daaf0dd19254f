"""States and their gradients between the two chunks of a pair, found again where they are needed.

The backward keeps the state before every second chunk, and the gradient of the state after it, which halves what goes
through memory. The second chunk of a pair starts from what the first makes of the kept state, and the state after
the first has the gradient that the second gives it:

.. code-block:: text

    S  = e^{G_C} S_kept + (k e^{G_C - G})^T x             x, z: what the first chunk writes, with k and with b
    dS = e^{G_C} dS_kept + (q e^{G_q})^T o' + (a e^{G_a})^T dr        o' = scale do, dr: of the second chunk

A chunk past the end of its sequence has no rows, so it changes nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.matrix.tiles import (
    dot,
    load_decays,
    load_decays_to_end,
    load_gate,
    load_lower,
    load_reader_rows,
    load_rows,
    load_state,
    outer,
    read,
    times_state,
)


@triton.jit
def state_block(
    k, g, b, states, index, first, start, past, first_v, x, z, moves,
    H: tl.constexpr, HB: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    KB: tl.constexpr, VB: tl.constexpr, CHANNEL: tl.constexpr, GENERAL: tl.constexpr, DT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows first .. of the kept state, or, if it moves, of what the chunk at ``start``, which writes x and z, makes of
    it."""
    s = load_state(states, index, first, K, V, first_v, KB, VB)
    if moves:
        to_end, whole = load_decays_to_end(g, start, past, HV, head, K, first, CHANNEL, C, KB)
        keys = load_rows(k, start, past, H, head // (HV // H), K, first, C, KB)
        new = times_state(whole, s.to(tl.float32), CHANNEL) + outer(keys, to_end, x, CHANNEL, DT, PRECISION)
        if GENERAL:
            back = load_rows(b, start, past, HB, head // (HV // HB), K, first, C, KB)
            new += outer(back, to_end, z, CHANNEL, DT, PRECISION)
        s = new.to(s.dtype)
    return s


@triton.jit
def state_gradient_block(
    q, k, g, a, erase, dstates, index, first, start, past, first_v, out, dr, moves,
    H: tl.constexpr, HA: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    KB: tl.constexpr, VB: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr, PREDICT_NOW: tl.constexpr,
    READ_NOW: tl.constexpr, DT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows first .. of the kept gradient of a state, or, if it moves, of what the chunk at ``start`` makes of it."""
    ds = load_state(dstates, index, first, K, V, first_v, KB, VB)
    if moves:
        _, whole = load_decays_to_end(g, start, past, HV, head, K, first, CHANNEL, C, KB)
        decay = load_decays(g, start, past, HV, head, K, first, READ_NOW, CHANNEL, C, KB)
        queries = load_rows(q, start, past, H, head // (HV // H), K, first, C, KB)
        new = times_state(whole, ds.to(tl.float32), CHANNEL) + outer(
            queries, decay, out, CHANNEL, DT, PRECISION
        )
        if DELTA:
            if READ_NOW != PREDICT_NOW:
                decay = load_decays(g, start, past, HV, head, K, first, PREDICT_NOW, CHANNEL, C, KB)
            reader = load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, first, C, KB)
            new += outer(reader, decay, dr, CHANNEL, DT, PRECISION)
        ds = new.to(ds.dtype)
    return ds


@triton.jit
def values_before(
    k, v, g, a, b, write, erase, inverse, scores_ak, states, index, start, past, first_v,
    H: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, VB: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr,
    GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr, DT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x and z, what the chunk at ``start`` writes, from the kept state before it."""
    x = load_rows(v, start, past, HV, head, V, first_v, C, VB)
    if write is not None:
        x = x.to(tl.float32) * load_gate(write, start, past, HV, head, C)[:, None]
    z = tl.zeros((C, VB), DT)
    if DELTA:
        right = tl.zeros((C, VB), tl.float32)
        for every in tl.range((K + KB - 1) // KB, disable_licm=True):
            s = load_state(states, index, every * KB, K, V, first_v, KB, VB)
            reader = load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, every * KB, C, KB)
            decay = load_decays(g, start, past, HV, head, K, every * KB, PREDICT_NOW, CHANNEL, C, KB)
            right += read(reader, decay, s, CHANNEL, DT, PRECISION)
        solve = load_lower(inverse, start, past, HV, head, C)
        if GENERAL:
            right += dot(load_lower(scores_ak, start, past, HV, head, C), x, DT, PRECISION)
            z = dot(solve, right, DT, PRECISION).to(DT)
        else:
            x = dot(solve, right + x.to(tl.float32), DT, PRECISION)
    return x.to(DT), z


@triton.jit
def gradients_after(
    do, k, g, b, inverse, scores_qk, scores_qb, dstates, index, start, past, first_v, scale,
    H: tl.constexpr, HB: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, VB: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr,
    GENERAL: tl.constexpr, DT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """scale do and dr of the chunk at ``start``, from the kept gradient of the state after it."""
    out = load_rows(do, start, past, HV, head, V, first_v, C, VB)
    dr = tl.zeros((C, VB), DT)
    if DELTA:
        scores = load_lower(scores_qb if GENERAL else scores_qk, start, past, HV, head, C)
        dx = scale * dot(tl.trans(scores), out, DT, PRECISION)
        for every in tl.range((K + KB - 1) // KB, disable_licm=True):
            ds = load_state(dstates, index, every * KB, K, V, first_v, KB, VB)
            to_end, _ = load_decays_to_end(g, start, past, HV, head, K, every * KB, CHANNEL, C, KB)
            if GENERAL:
                writer = load_rows(b, start, past, HB, head // (HV // HB), K, every * KB, C, KB)
            else:
                writer = load_rows(k, start, past, H, head // (HV // H), K, every * KB, C, KB)
            dx += read(writer, to_end, ds, CHANNEL, DT, PRECISION)
        dr = dot(tl.trans(load_lower(inverse, start, past, HV, head, C)), dx, DT, PRECISION).to(DT)
    return (scale * out.to(tl.float32)).to(DT), dr
