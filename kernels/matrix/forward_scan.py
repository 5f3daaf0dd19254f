"""The forward of the matrix engine over time: the state stays on chip, the output is written in the same pass.

With r = w + (a e^{G_a}) S, x = A r, A = (I - tril(a k^T e^{G_a - G}))^-1 and w = write v (a = -erase k where erase
is given):

.. code-block:: text

    o = scale ((q e^{G_q}) S + P x),   P = tril(q k^T e^{G_q - G})
    S' = e^{G_C} S + (k e^{G_C - G})^T x

Without a prediction x = w. In the general path (b given) x = w as well, and z = A ((a e^{G_a}) S + L_k w) is read
through P_b and written with b beside it. So nothing of the size of k or v goes through memory between the arguments
and the output: of a chunk only A, ``[C, C]``, and, where forming it once pays, P.
"""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.matrix.tiles import (
    bonus_of,
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
    store_rows,
    store_state,
    times_state,
)


@triton.jit
def forward_scan(
    q, k, v, g, a, b, bonus, write, erase, inverse, scores_qk, scores_qb, scores_ak, state, cu_seqlens, o, last,
    length, scale,
    H: tl.constexpr, HV: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, VB: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr,
    GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr, READ_NOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output and final state; grid (blocks of V, sequences * HV), KB covers K."""
    first_v = tl.program_id(0) * VB
    n, head = tl.program_id(1) // HV, tl.program_id(1) % HV
    head_k = head // (HV // H)
    at = n.to(tl.int64) * HV + head
    DT: tl.constexpr = v.dtype.element_ty
    first, past, _ = sequence(n, cu_seqlens, length, C)
    if state is None:
        s = tl.zeros((KB, VB), tl.float32)
    else:
        s = load_state(state, at, 0, K, V, first_v, KB, VB).to(tl.float32)
    for c in tl.range(tl.cdiv(past - first, C).to(tl.int32), disable_licm=True):
        start = first + c * C
        keys = load_rows(k, start, past, H, head_k, K, 0, C, KB)
        queries = load_rows(q, start, past, H, head_k, K, 0, C, KB)
        x = load_rows(v, start, past, HV, head, V, first_v, C, VB)
        if write is not None:
            x = x.to(tl.float32) * load_gate(write, start, past, HV, head, C)[:, None]
        decay = load_decays(g, start, past, HV, head, K, 0, READ_NOW, CHANNEL, C, KB)
        out = read(queries, decay, s, CHANNEL, DT, PRECISION)
        if bonus is not None:
            out += bonus_of(bonus, queries, keys, head, K, 0, KB)[:, None] * x.to(tl.float32)
        if DELTA:
            if READ_NOW != PREDICT_NOW:
                decay = load_decays(g, start, past, HV, head, K, 0, PREDICT_NOW, CHANNEL, C, KB)
            reader = load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, 0, C, KB)
            r = read(reader, decay, s, CHANNEL, DT, PRECISION)
            solve = load_lower(inverse, start, past, HV, head, C)
            if GENERAL:
                r += dot(load_lower(scores_ak, start, past, HV, head, C), x, DT, PRECISION)
                z = dot(solve, r, DT, PRECISION).to(DT)
                out += dot(load_lower(scores_qb, start, past, HV, head, C), z, DT, PRECISION)
            else:
                x = dot(solve, r + x.to(tl.float32), DT, PRECISION).to(DT)
        if scores_qk is None:
            total, before, _last = shared_decay(g, start, past, HV, head, C)
            scores = dot(queries, tl.trans(keys), DT, PRECISION)
            scores = (scores * decay_matrix(total if READ_NOW else before, total, READ_NOW, C)).to(DT)
        else:
            scores = load_lower(scores_qk, start, past, HV, head, C)
        out += dot(scores, x, DT, PRECISION)
        store_rows(o, scale * out, start, past, HV, head, V, first_v, C, VB)
        to_end, whole = load_decays_to_end(g, start, past, HV, head, K, 0, CHANNEL, C, KB)
        s = times_state(whole, s, CHANNEL) + outer(keys, to_end, x, CHANNEL, DT, PRECISION)
        if GENERAL:
            back = load_rows(b, start, past, HB, head // (HV // HB), K, 0, C, KB)
            s += outer(back, to_end, z, CHANNEL, DT, PRECISION)
    store_state(last, s, at, 0, K, V, first_v, KB, VB)
