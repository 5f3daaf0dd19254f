"""States and their gradients within a group of chunks, found again where they are needed.

The backward keeps the state before every group of chunks, and the gradient of the state after it: the fewer of them,
the less goes through memory. In between, a state is moved on and a gradient back by what the passes over time have
found anyway and kept for each token, so nothing is solved again:

.. code-block:: text

    S' = e^{G_C} S + (k e^{G_C - G})^T x + (b e^{G_C - G})^T z
    dS = e^{G_C} dS' + scale (q e^{G_q})^T do + (a e^{G_a})^T dr
"""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.matrix.tiles import (
    load_decays,
    load_decays_to_end,
    load_gate,
    load_reader_rows,
    load_rows,
    load_state,
    outer,
    times_state,
)


@triton.jit
def place_in_group(slot, GROUP: tl.constexpr):
    """The group of a slot, and the chunk's place in it."""
    return slot // GROUP, (slot % GROUP).to(tl.int32)


@triton.jit
def values_of(
    v, write, start, past, HV: tl.constexpr, head, V: tl.constexpr, first_v, C: tl.constexpr, VB: tl.constexpr
):
    """write v of a chunk."""
    x = load_rows(v, start, past, HV, head, V, first_v, C, VB)
    if write is not None:
        x = x.to(tl.float32) * load_gate(write, start, past, HV, head, C)[:, None]
    return x


@triton.jit
def written_rows(
    v, write, solved, start, past, HV: tl.constexpr, head, V: tl.constexpr, first_v, C: tl.constexpr,
    VB: tl.constexpr, DELTA: tl.constexpr, GENERAL: tl.constexpr,
):  # fmt: skip
    """What a chunk wrote with k, x, and with b, z; ``solved`` keeps z, or without b x."""
    if DELTA and not GENERAL:
        x = load_rows(solved, start, past, HV, head, V, first_v, C, VB)
    else:
        x = values_of(v, write, start, past, HV, head, V, first_v, C, VB)
    if GENERAL:
        z = load_rows(solved, start, past, HV, head, V, first_v, C, VB)
    else:
        z = tl.zeros((C, VB), v.dtype.element_ty)
    return x, z


@triton.jit
def state_before(
    k, v, g, b, write, solved, states, group, place, start, past, first, first_v,
    H: tl.constexpr, HB: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    KB: tl.constexpr, VB: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr, GENERAL: tl.constexpr,
    DT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows first .. of the state before the chunk at ``start``."""
    s = load_state(states, group * HV + head, first, K, V, first_v, KB, VB).to(tl.float32)
    for back in tl.range(place, disable_licm=True):
        at = start - (place - back) * C
        x, z = written_rows(v, write, solved, at, past, HV, head, V, first_v, C, VB, DELTA, GENERAL)
        to_end, whole = load_decays_to_end(g, at, past, HV, head, K, first, CHANNEL, C, KB)
        keys = load_rows(k, at, past, H, head // (HV // H), K, first, C, KB)
        s = times_state(whole, s, CHANNEL) + outer(keys, to_end, x, CHANNEL, DT, PRECISION)
        if GENERAL:
            rows = load_rows(b, at, past, HB, head // (HV // HB), K, first, C, KB)
            s += outer(rows, to_end, z, CHANNEL, DT, PRECISION)
    return s.to(DT)


@triton.jit
def state_gradient_after(
    do, q, k, g, a, erase, dr, dstates, group, place, start, past, first, first_v, scale,
    H: tl.constexpr, HA: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    KB: tl.constexpr, VB: tl.constexpr, GROUP: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr,
    PREDICT_NOW: tl.constexpr, READ_NOW: tl.constexpr, DT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows first .. of the gradient of the state after the chunk at ``start``."""
    ds = load_state(dstates, group * HV + head, first, K, V, first_v, KB, VB).to(tl.float32)
    later = tl.minimum(GROUP - 1 - place, (tl.cdiv(past - start, C) - 1).to(tl.int32))
    for back in tl.range(later, disable_licm=True):
        at = start + (later - back) * C
        _, whole = load_decays_to_end(g, at, past, HV, head, K, first, CHANNEL, C, KB)
        decay = load_decays(g, at, past, HV, head, K, first, READ_NOW, CHANNEL, C, KB)
        queries = load_rows(q, at, past, H, head // (HV // H), K, first, C, KB)
        out = load_rows(do, at, past, HV, head, V, first_v, C, VB)
        ds = times_state(whole, ds, CHANNEL) + scale * outer(queries, decay, out, CHANNEL, DT, PRECISION)
        if DELTA:
            if READ_NOW != PREDICT_NOW:
                decay = load_decays(g, at, past, HV, head, K, first, PREDICT_NOW, CHANNEL, C, KB)
            reader = load_reader_rows(a, k, erase, at, past, H, HA, HV, head, K, first, C, KB)
            dright = load_rows(dr, at, past, HV, head, V, first_v, C, VB)
            ds += outer(reader, decay, dright, CHANNEL, DT, PRECISION)
    return ds.to(DT)
