"""The two passes over time of the backward: entry states forwards, their gradients backwards.

With r = w + (a e^{G_a}) S, x = A r, A = (I - tril(a k^T e^{G_a - G}))^-1 and w = write v (a = -erase k where erase
is given):

.. code-block:: text

    S'  = e^{G_C} S + (k e^{G_C - G})^T x
    dx  = scale P^T do + (k e^{G_C - G}) dS',   dr = A^T dx
    dS  = e^{G_C} dS' + scale (q e^{G_q})^T do + (a e^{G_a})^T dr

In the general path (b given) x = w, z = A ((a e^{G_a}) S + L_k w) is written beside it with b, and
dr = A^T (scale P_b^T do + (b e^{G_C - G}) dS'). One program has all of K and a block of V; the state stays on chip.
"""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.matrix.tiles import (
    decay_matrix,
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
    sequence,
    shared_decay,
    state_after,
    store_rows,
    store_state,
    times_state,
)


@triton.jit
def entry_states(
    k, v, g, a, b, write, erase, inverse, scores_ak, state, cu_seqlens, states, solved, length,
    H: tl.constexpr, HV: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, VB: tl.constexpr, GROUP: tl.constexpr, CHANNEL: tl.constexpr,
    DELTA: tl.constexpr, GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state before every group of chunks, ``states[group, head]``, and what each row solved for, ``solved``.

    That is z, or without b x, in the shape of v. Grid (blocks of V, sequences * HV).
    """
    first_v = tl.program_id(0) * VB
    n, head = tl.program_id(1) // HV, tl.program_id(1) % HV
    DT: tl.constexpr = v.dtype.element_ty
    first, past, group = sequence(n, cu_seqlens, length, GROUP * C)
    if state is None:
        s = tl.zeros((KB, VB), tl.float32)
    else:
        s = load_state(state, n.to(tl.int64) * HV + head, 0, K, V, first_v, KB, VB).to(tl.float32)
    for c in tl.range(tl.cdiv(past - first, C).to(tl.int32), disable_licm=True):
        start = first + c * C
        if c % GROUP == 0:
            store_state(states, s, (group + c // GROUP) * HV + head, 0, K, V, first_v, KB, VB)
        keys = load_rows(k, start, past, H, head // (HV // H), K, 0, C, KB)
        x = load_rows(v, start, past, HV, head, V, first_v, C, VB)
        if write is not None:
            x = x.to(tl.float32) * load_gate(write, start, past, HV, head, C)[:, None]
        s, written = state_after(
            s, x, keys, k, g, a, b, erase, inverse, scores_ak, start, past, H, HA, HB, HV, head, K, C, KB,
            CHANNEL, DELTA, GENERAL, PREDICT_NOW, DT, PRECISION,
        )  # fmt: skip
        if solved is not None:
            store_rows(solved, written, start, past, HV, head, V, first_v, C, VB)


@triton.jit
def state_gradients(
    do, q, k, g, a, b, erase, inverse, scores_qk, scores_qb, dlast, cu_seqlens, dstates, dstate, dr, length, scale,
    H: tl.constexpr, HV: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, VB: tl.constexpr, GROUP: tl.constexpr, CHANNEL: tl.constexpr,
    DELTA: tl.constexpr, GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr, READ_NOW: tl.constexpr, DT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the state after every group, ``dstates[group, head]``, of the initial one, and of r, ``dr``, as v.

    Grid as above.
    """
    first_v = tl.program_id(0) * VB
    n, head = tl.program_id(1) // HV, tl.program_id(1) % HV
    first, past, group = sequence(n, cu_seqlens, length, GROUP * C)
    at = n.to(tl.int64) * HV + head
    if dlast is None:
        ds = tl.zeros((KB, VB), tl.float32)
    else:
        ds = load_state(dlast, at, 0, K, V, first_v, KB, VB).to(tl.float32)
    chunks = tl.cdiv(past - first, C).to(tl.int32)
    for back in tl.range(chunks, disable_licm=True):
        c = chunks - 1 - back
        start = first + c * C
        if (c % GROUP == GROUP - 1) | (back == 0):
            store_state(dstates, ds, (group + c // GROUP) * HV + head, 0, K, V, first_v, KB, VB)
        queries = load_rows(q, start, past, H, head // (HV // H), K, 0, C, KB)
        out = load_rows(do, start, past, HV, head, V, first_v, C, VB)
        if DELTA:
            if GENERAL:
                scores = load_lower(scores_qb, start, past, HV, head, C)
                writer = load_rows(b, start, past, HB, head // (HV // HB), K, 0, C, KB)
            else:
                writer = load_rows(k, start, past, H, head // (HV // H), K, 0, C, KB)
                if scores_qk is not None:
                    scores = load_lower(scores_qk, start, past, HV, head, C)
                else:
                    total, before, _ = shared_decay(g, start, past, HV, head, C)
                    scores = dot(queries, tl.trans(writer), DT, PRECISION)
                    scores *= decay_matrix(total if READ_NOW else before, total, READ_NOW, C)
            to_end, _ = load_decays_to_end(g, start, past, HV, head, K, 0, CHANNEL, C, KB)
            dx = scale * dot(tl.trans(scores), out, DT, PRECISION)
            dx += read(writer, to_end, ds, CHANNEL, DT, PRECISION)
            dright = dot(tl.trans(load_lower(inverse, start, past, HV, head, C)), dx, DT, PRECISION).to(DT)
        _, whole = load_decays_to_end(g, start, past, HV, head, K, 0, CHANNEL, C, KB)
        decay = load_decays(g, start, past, HV, head, K, 0, READ_NOW, CHANNEL, C, KB)
        ds = times_state(whole, ds, CHANNEL) + scale * outer(queries, decay, out, CHANNEL, DT, PRECISION)
        if DELTA:
            if READ_NOW != PREDICT_NOW:
                decay = load_decays(g, start, past, HV, head, K, 0, PREDICT_NOW, CHANNEL, C, KB)
            reader = load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, 0, C, KB)
            ds += outer(reader, decay, dright, CHANNEL, DT, PRECISION)
            store_rows(dr, dright, start, past, HV, head, V, first_v, C, VB)
    if dstate is not None:
        store_state(dstate, ds, at, 0, K, V, first_v, KB, VB)
