"""The scores of every chunk and the inverse of its triangular system, once for all passes that need them.

.. code-block:: text

    M_ij = sum_d x_id y_jd e^{at_x_id - at_y_jd}      P: x, y = q, k   P_b: q, b   L_k: a, k   L: a, y (y = b, else k)
    A = (I - L)^-1

In 16 bits A is built from blocks of one row upwards: [[A1, 0], [A2 L21 A1, A2]] inverts a pair of neighbours. That only
ever multiplies by true inverses, which stay small however alike the keys are, unlike the powers of L in a Neumann
series. In float32 A is found by substitution.
"""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.matrix.tiles import (
    chunk_of_slot,
    decay_matrix,
    decay_since_start,
    decay_to_end,
    dot,
    level_mask,
    load_reader_rows,
    load_rows,
    shared_decay,
    store_lower,
)


@triton.jit
def fine_dot(x, y, DT: tl.constexpr):
    """x y of float32 to at least twice the digits of DT: an inverse kept in 16 bits is off by 2^-9 anyway, and products
    of two halves of 16 bits build it in half the registers."""
    high_x, high_y = x.to(DT), y.to(DT)
    low_x, low_y = (x - high_x.to(tl.float32)).to(DT), (y - high_y.to(tl.float32)).to(DT)
    return tl.dot(high_x, low_y, acc=tl.dot(low_x, high_y)) + tl.dot(high_x, high_y)


@triton.jit
def inverse_by_substitution(system, C: tl.constexpr):
    """(I - system)^-1 row after row in float64: where keys are alike, a row is a small difference of large sums."""
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    system = system.to(tl.float64)
    solve = tl.where(i == j, 1.0, 0.0).to(tl.float64)
    for row in range(C - 1):
        below = tl.sum(tl.where(j == row, system, 0.0), 1)
        solve += below[:, None] * tl.sum(tl.where(i == row, solve, 0.0), 0)[None, :]
    return solve.to(tl.float32)


@triton.jit
def inverse_by_merging(system, LEVELS: tl.constexpr, C: tl.constexpr, DT: tl.constexpr):
    """(I - system)^-1 from blocks of one row upwards, in twice the digits of DT."""
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    solve = tl.where(i == j, 1.0, 0.0) + tl.where(level_mask(1, C), system, 0.0)
    for level in tl.static_range(1, LEVELS):
        below = tl.where(level_mask(2**level, C), system, 0.0)
        half = fine_dot(solve, below, DT)
        solve += fine_dot(half, solve, DT)
    return solve


@triton.jit
def decayed(x, from_x, y, to_y, mask, DT: tl.constexpr, PRECISION: tl.constexpr):
    """(x from_x) (y to_y)^T inside the mask."""
    scores = dot(x.to(tl.float32) * from_x, tl.trans(y.to(tl.float32) * to_y), DT, PRECISION)
    return tl.where(mask, scores, 0.0)


@triton.jit
def chunk_scores(
    q, k, g, a, b, erase, cu_seqlens, inverse, scores_qk, scores_qb, scores_ak, sequences, length,
    H: tl.constexpr, HV: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, K: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, LEVELS: tl.constexpr, SEQUENCES: tl.constexpr, CHANNEL: tl.constexpr,
    GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr, READ_NOW: tl.constexpr,
    DT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (slots, HV). Each of the four results is written where it is given, as rows ``[rows, HV, C]``."""
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, past = chunk_of_slot(slot, cu_seqlens, sequences, length, C, SEQUENCES)
    if start >= past:
        return
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    READS: tl.constexpr = scores_qk is not None
    SOLVES: tl.constexpr = inverse is not None
    qk = tl.zeros((C, C), tl.float32)
    qb = tl.zeros((C, C), tl.float32)
    ak = tl.zeros((C, C), tl.float32)
    ab = tl.zeros((C, C), tl.float32)
    for block in range((K + KB - 1) // KB):
        first = block * KB
        keys = load_rows(k, start, past, H, head // (HV // H), K, first, C, KB)
        if READS:
            queries = load_rows(q, start, past, H, head // (HV // H), K, first, C, KB)
        if SOLVES:
            reader = load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, first, C, KB)
        if GENERAL:
            back = load_rows(b, start, past, HB, head // (HV // HB), K, first, C, KB)
        if CHANNEL:
            for level in tl.static_range(LEVELS):
                mask = level_mask(2**level, C)
                to_k = decay_to_end(g, start, past, HV, head, K, first, 2**level, C, KB)
                from_q = decay_since_start(g, start, past, HV, head, K, first, READ_NOW, 2**level, C, KB)
                from_a = from_q
                if READ_NOW != PREDICT_NOW:
                    from_a = decay_since_start(
                        g, start, past, HV, head, K, first, PREDICT_NOW, 2**level, C, KB
                    )
                if READS:
                    qk += decayed(queries, from_q, keys, to_k, mask, DT, PRECISION)
                    if GENERAL:
                        qb += decayed(queries, from_q, back, to_k, mask, DT, PRECISION)
                if SOLVES:
                    ak += decayed(reader, from_a, keys, to_k, mask, DT, PRECISION)
                    if GENERAL:
                        ab += decayed(reader, from_a, back, to_k, mask, DT, PRECISION)
            if READS and READ_NOW:
                qk += tl.where(i == j, tl.sum(queries.to(tl.float32) * keys.to(tl.float32), 1)[:, None], 0.0)
                if GENERAL:
                    qb += tl.where(
                        i == j, tl.sum(queries.to(tl.float32) * back.to(tl.float32), 1)[:, None], 0.0
                    )
        else:
            if READS:
                qk += dot(queries, tl.trans(keys), DT, PRECISION)
                if GENERAL:
                    qb += dot(queries, tl.trans(back), DT, PRECISION)
            if SOLVES:
                ak += dot(reader, tl.trans(keys), DT, PRECISION)
                if GENERAL:
                    ab += dot(reader, tl.trans(back), DT, PRECISION)
    if not CHANNEL:
        total, before, _ = shared_decay(g, start, past, HV, head, C)
        weight_q = decay_matrix(total if READ_NOW else before, total, READ_NOW, C)
        weight_a = decay_matrix(total if PREDICT_NOW else before, total, False, C)
        qk *= weight_q
        qb *= weight_q
        ak *= weight_a
        ab *= weight_a
    if READS:
        store_lower(scores_qk, qk, start, past, HV, head, C)
        if GENERAL:
            store_lower(scores_qb, qb, start, past, HV, head, C)
    if SOLVES:
        system = ak
        if GENERAL:
            store_lower(scores_ak, ak, start, past, HV, head, C)
            system = ab
        if tl.float32 == DT:
            solve = inverse_by_substitution(system, C)
        else:
            solve = inverse_by_merging(system, LEVELS, C, DT)
        store_lower(inverse, solve, start, past, HV, head, C)
