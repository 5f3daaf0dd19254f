"""The adjoint of the scores: from their gradients those of q, k, a and b.

.. code-block:: text

    M_ij = sum_d x_id y_jd e^{at_x_id - at_y_jd}        dx = (dM e^{at_x - at_y}) y,   dy = (dM e^{at_x - at_y})^T x
"""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.matrix.tiles import (
    decay_matrix,
    decay_since_start,
    decay_to_end,
    dot,
    hold_back,
    level_mask,
    load_reader_rows,
    load_rows,
    shared_decay,
)


@triton.jit
def weights_of_scores(
    g, start, past, scale, HV: tl.constexpr, head, C: tl.constexpr, CHANNEL: tl.constexpr,
    PREDICT_NOW: tl.constexpr, READ_NOW: tl.constexpr,
):  # fmt: skip
    """What the gradients of scores with q, and with a, are multiplied by: the mask, and a shared decay."""
    if CHANNEL:
        i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
        of_q = tl.where((j <= i) if READ_NOW else (j < i), scale, 0.0)
        of_a = tl.where(j < i, 1.0, 0.0)
    else:
        total, before, _last = shared_decay(g, start, past, HV, head, C)
        of_q = scale * decay_matrix(total if READ_NOW else before, total, READ_NOW, C)
        of_a = decay_matrix(total if PREDICT_NOW else before, total, False, C)
    return of_q, of_a


@triton.jit
def pair_adjoint(
    dm, x, y, from_x, to_y, mask, SHARED: tl.constexpr, DT: tl.constexpr, PRECISION: tl.constexpr
):
    """Gradients of x and y from that of (x from_x) (y to_y)^T inside the mask; a shared decay is in dm already."""
    if SHARED:
        return dot(dm, y, DT, PRECISION), dot(tl.trans(dm), x, DT, PRECISION)
    else:
        here = tl.where(mask, dm, 0.0)
        return (
            from_x * dot(here, y.to(tl.float32) * to_y, DT, PRECISION),
            to_y * dot(tl.trans(here), x.to(tl.float32) * from_x, DT, PRECISION),
        )


@triton.jit
def through_scores(
    dqk, dak, dqb, dab, gq, gk, ga, gb, q, k, g, a, b, erase, start, past, first,
    H: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, C: tl.constexpr,
    KB: tl.constexpr, LEVEL: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr, GENERAL: tl.constexpr,
    PREDICT_NOW: tl.constexpr, READ_NOW: tl.constexpr, DT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of q, k, a and b with what they have through the scores, of channel decays those of one level."""
    if CHANNEL:
        hold_back()
    keys = load_rows(k, start, past, H, head // (HV // H), K, first, C, KB)
    queries = load_rows(q, start, past, H, head // (HV // H), K, first, C, KB)
    from_q, to_k, from_a, mask = 1.0, 1.0, 1.0, True
    if CHANNEL:
        mask = level_mask(2**LEVEL, C)
        from_q = decay_since_start(g, start, past, HV, head, K, first, READ_NOW, 2**LEVEL, C, KB)
        to_k = decay_to_end(g, start, past, HV, head, K, first, 2**LEVEL, C, KB)
        from_a = from_q
        if DELTA and READ_NOW != PREDICT_NOW:
            from_a = decay_since_start(g, start, past, HV, head, K, first, PREDICT_NOW, 2**LEVEL, C, KB)
    more_q, more_k = pair_adjoint(dqk, queries, keys, from_q, to_k, mask, not CHANNEL, DT, PRECISION)
    gq += more_q
    gk += more_k
    if DELTA:
        if CHANNEL:
            hold_back()
        reader = load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, first, C, KB)
        more_a, more_k = pair_adjoint(dak, reader, keys, from_a, to_k, mask, not CHANNEL, DT, PRECISION)
        ga += more_a
        gk += more_k
    if GENERAL:
        back = load_rows(b, start, past, HB, head // (HV // HB), K, first, C, KB)
        more_q, more_b = pair_adjoint(dqb, queries, back, from_q, to_k, mask, not CHANNEL, DT, PRECISION)
        gq += more_q
        gb += more_b
        more_a, more_b = pair_adjoint(dab, reader, back, from_a, to_k, mask, not CHANNEL, DT, PRECISION)
        ga += more_a
        gb += more_b
    return gq, gk, ga, gb


@triton.jit
def diagonal_of(dm, C: tl.constexpr):
    """The diagonal as a column."""
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    return tl.sum(tl.where(i == j, dm, 0.0), 1)[:, None]


@triton.jit
def through_diagonal(
    self_k, self_b, gq, gk, gb, q, k, b, start, past, first,
    H: tl.constexpr, HB: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, C: tl.constexpr, KB: tl.constexpr,
    GENERAL: tl.constexpr,
):  # fmt: skip
    """The gradients of q, k and b with what they have through the diagonals of scores, which no channel decays."""
    keys = load_rows(k, start, past, H, head // (HV // H), K, first, C, KB)
    queries = load_rows(q, start, past, H, head // (HV // H), K, first, C, KB)
    gq += self_k * keys.to(tl.float32)
    gk += self_k * queries.to(tl.float32)
    if GENERAL:
        back = load_rows(b, start, past, HB, head // (HV // HB), K, first, C, KB)
        gq += self_b * back.to(tl.float32)
        gb += self_b * queries.to(tl.float32)
    return gq, gk, gb
