"""Gradients of what a chunk was given to write: dv and dwrite.

.. code-block:: text

    delta rule:   d(write v) = dr
    otherwise:    d(write v) = scale P^T do + (k e^{G_C - G}) dS' + L_k^T dr      (dr: of the general path)
"""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.matrix.groups import state_gradient_after
from linrec.kernels.matrix.tiles import (
    bonus_of,
    decay_matrix,
    dot,
    load_decays_to_end,
    load_gate,
    load_lower,
    load_rows,
    read,
    shared_decay,
    store_gate,
    store_rows,
)


@triton.jit
def read_scores(
    q, k, g, bonus, start, past, H: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, C: tl.constexpr,
    KB: tl.constexpr, FORM: tl.constexpr, READ_NOW: tl.constexpr, DT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The scores of q and k with a shared decay, if they are to be formed, and q (bonus k) of each row."""
    product = tl.zeros((C, C), tl.float32)
    now = tl.zeros((C,), tl.float32)
    for every in tl.range((K + KB - 1) // KB, disable_licm=True):
        keys = load_rows(k, start, past, H, head // (HV // H), K, every * KB, C, KB)
        queries = load_rows(q, start, past, H, head // (HV // H), K, every * KB, C, KB)
        if bonus is not None:
            now += bonus_of(bonus, queries, keys, head, K, every * KB, KB)
        if FORM:
            product += dot(queries, tl.trans(keys), DT, PRECISION)
    if FORM:
        total, before, _last = shared_decay(g, start, past, HV, head, C)
        product *= decay_matrix(total if READ_NOW else before, total, READ_NOW, C)
    return product.to(DT), now


@triton.jit
def value_gradients(
    do, q, k, v, g, a, bonus, write, erase, scores_qk, scores_ak, dr, dstates, dv, dwrite,
    group, place, start, past, scale,
    H: tl.constexpr, HA: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    KB: tl.constexpr, VB: tl.constexpr, GROUP: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr,
    GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr, READ_NOW: tl.constexpr, DT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dv and dwrite of the chunk at ``start``."""
    dstrength = tl.zeros((C,), tl.float32)
    SOLVED: tl.constexpr = DELTA and not GENERAL
    FORM: tl.constexpr = not SOLVED and scores_qk is None
    if FORM or bonus is not None:
        scores, now = read_scores(
            q, k, g, bonus, start, past, H, HV, head, K, C, KB, FORM, READ_NOW, DT, PRECISION
        )
    for block in tl.range((V + VB - 1) // VB, disable_licm=True):
        first_v = block * VB
        if SOLVED:
            dvalue = load_rows(dr, start, past, HV, head, V, first_v, C, VB).to(tl.float32)
        else:
            if scores_qk is not None:
                scores = load_lower(scores_qk, start, past, HV, head, C)
            out = load_rows(do, start, past, HV, head, V, first_v, C, VB)
            dvalue = scale * dot(tl.trans(scores), out, DT, PRECISION)
            for every in tl.range((K + KB - 1) // KB, disable_licm=True):
                ds = state_gradient_after(
                    do, q, k, g, a, erase, dr, dstates, group, place, start, past, every * KB, first_v, scale,
                    H, HA, HV, head, K, V, C, KB, VB, GROUP, CHANNEL, DELTA, PREDICT_NOW, READ_NOW, DT, PRECISION,
                )  # fmt: skip
                to_end, _ = load_decays_to_end(g, start, past, HV, head, K, every * KB, CHANNEL, C, KB)
                keys = load_rows(k, start, past, H, head // (HV // H), K, every * KB, C, KB)
                dvalue += read(keys, to_end, ds, CHANNEL, DT, PRECISION)
        if GENERAL:
            within = load_lower(scores_ak, start, past, HV, head, C)
            dright = load_rows(dr, start, past, HV, head, V, first_v, C, VB)
            dvalue += dot(tl.trans(within), dright, DT, PRECISION)
        if bonus is not None:
            out = load_rows(do, start, past, HV, head, V, first_v, C, VB)
            dvalue += (scale * now)[:, None] * out.to(tl.float32)
        if write is not None:
            values = load_rows(v, start, past, HV, head, V, first_v, C, VB)
            dstrength += tl.sum(dvalue * values.to(tl.float32), 1)
            dvalue = dvalue * load_gate(write, start, past, HV, head, C)[:, None]
        store_rows(dv, dvalue, start, past, HV, head, V, first_v, C, VB)
    if write is not None:
        store_gate(dwrite, dstrength, start, past, HV, head, C)
