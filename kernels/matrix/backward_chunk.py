"""The part of the backward that needs no order: all gradients of a chunk's tokens from its entry state and dS'.

.. code-block:: text

    dP = scale do x^T,  dL = dr x^T
    dq = scale do S^T e^{G_q} + dP k,   da = dr S^T e^{G_a} + dL k,   dk = x dS'^T e^{G_C - G} + dP^T q + dL^T a
    dG = q dq + a da - k dk - b db  (each at its own G),  + S' dS' at the last row;   dg = reversed cumulative sum

(dP, dL and the products with them carry the decay.) With erase, a = -erase k gives its gradient to k and erase.
"""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.matrix.pairs import gradients_after, state_block, state_gradient_block, values_before
from linrec.kernels.matrix.tiles import (
    bonus_of,
    chunk_of_slot,
    decay_matrix,
    decay_since_start,
    decay_to_end,
    dot,
    level_mask,
    load_decays,
    load_decays_to_end,
    load_gate,
    load_lower,
    load_reader_rows,
    load_rows,
    read,
    shared_decay,
    store_gate,
    store_rows,
)


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
def store_part(x, values, part, start, past, tokens, heads, head, C: tl.constexpr):
    """A block's part ``x[part]`` of a gate's gradient, ``[blocks, tokens, heads]``."""
    store_gate(x + part * tokens * heads, values, start, past, heads, head, C)


@triton.jit
def chunk_gradients(
    do, q, k, v, g, a, b, bonus, write, erase, inverse, scores_qk, scores_qb, scores_ak, states, dstates, cu_seqlens,
    dq, dk, dv, dg, da, db, dbonus, dwrite, derase, sequences, length, tokens, scale,
    H: tl.constexpr, HV: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, VB: tl.constexpr, LEVELS: tl.constexpr,
    SEQUENCES: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr, GENERAL: tl.constexpr,
    PREDICT_NOW: tl.constexpr, READ_NOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of K, 2 * pairs, HV); KB is the width of a block. dq, dk, da, db are those of one value head each.

    Programs of one chunk differ in the block of K that they find gradients of. Each forms what was written from all of
    K, so that none waits for another; the first stores dv and dwrite. dg of a shared decay and derase are sums over K,
    of which each block has its part, ``[blocks, rows, HV]``.
    """
    DT: tl.constexpr = v.dtype.element_ty
    BACK: tl.constexpr = scores_qk is not None or not DELTA  # gradients of states are kept for pairs
    BLOCKS: tl.constexpr = (K + KB - 1) // KB
    part, slot, head = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    pair, odd = slot // 2, slot % 2 == 1
    start, past = chunk_of_slot(pair, cu_seqlens, sequences, length, 2 * C, SEQUENCES)
    start += (slot % 2) * C
    if start >= past:
        return
    index = pair * HV + head
    index_after = index if BACK else slot * HV + head
    even = BACK and not odd
    head_k, head_b = head // (HV // H), head // (HV // HB)
    first = part * KB
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]

    if scores_qk is not None:
        scores = load_lower(scores_qk, start, past, HV, head, C)
    if scores_qk is None or bonus is not None:
        product = tl.zeros((C, C), tl.float32)
        now = tl.zeros((C,), tl.float32)
        for every in tl.range(BLOCKS, disable_licm=True):
            keys = load_rows(k, start, past, H, head_k, K, every * KB, C, KB)
            queries = load_rows(q, start, past, H, head_k, K, every * KB, C, KB)
            if bonus is not None:
                now += bonus_of(bonus, queries, keys, head, K, every * KB, KB)
            if scores_qk is None:
                product += dot(queries, tl.trans(keys), DT, PRECISION)
        if scores_qk is None:
            total, before, _last = shared_decay(g, start, past, HV, head, C)
            scores = (product * decay_matrix(total if READ_NOW else before, total, READ_NOW, C)).to(DT)

    # What is the same for all blocks is read again for each (disable_licm): kept in registers it would not fit.
    # Over blocks of V: what the chunk wrote (x, and z in the general path), the gradients of it, and what both give.
    dqk = tl.zeros((C, C), tl.float32)
    dak = tl.zeros((C, C), tl.float32)
    dqb = tl.zeros((C, C), tl.float32)
    dab = tl.zeros((C, C), tl.float32)
    gq = tl.zeros((C, KB), tl.float32)
    gk = tl.zeros((C, KB), tl.float32)
    ga = tl.zeros((C, KB), tl.float32)
    gb = tl.zeros((C, KB), tl.float32)
    at_end = tl.zeros((KB,), tl.float32)
    dnow = tl.zeros((C,), tl.float32)
    dstrength = tl.zeros((C,), tl.float32)
    for block in tl.range((V + VB - 1) // VB, disable_licm=True):
        first_v = block * VB
        out = load_rows(do, start, past, HV, head, V, first_v, C, VB)
        values = load_rows(v, start, past, HV, head, V, first_v, C, VB)
        x = values.to(tl.float32)
        if write is not None:
            x = x * load_gate(write, start, past, HV, head, C)[:, None]
        if bonus is not None:
            dnow += scale * tl.sum(out.to(tl.float32) * x, 1)
        # What moves the kept state to this chunk's start, or the kept gradient to its end.
        one = tl.zeros((C, VB), DT)
        other = tl.zeros((C, VB), DT)
        if odd:
            one, other = values_before(
                k, v, g, a, b, write, erase, inverse, scores_ak, states, index, start - C, past, first_v,
                H, HA, HB, HV, head, K, V, C, KB, VB, CHANNEL, DELTA, GENERAL, PREDICT_NOW, DT, PRECISION,
            )  # fmt: skip
        else:
            if BACK:
                one, other = gradients_after(
                    do, k, g, b, inverse, scores_qk, scores_qb, dstates, index_after, start + C, past, first_v, scale,
                    H, HB, HV, head, K, V, C, KB, VB, CHANNEL, DELTA, GENERAL, DT, PRECISION,
                )  # fmt: skip
        dx = scale * dot(tl.trans(scores), out, DT, PRECISION)
        right = tl.zeros((C, VB), tl.float32)
        dz = tl.zeros((C, VB), tl.float32)
        for every in tl.range(BLOCKS, disable_licm=True):
            to_end, _ = load_decays_to_end(g, start, past, HV, head, K, every * KB, CHANNEL, C, KB)
            ds = state_gradient_block(
                q, k, g, a, erase, dstates, index_after, every * KB, start + C, past, first_v, one, other, even,
                H, HA, HV, head, K, V, C, KB, VB, CHANNEL, DELTA, PREDICT_NOW, READ_NOW, DT, PRECISION,
            )  # fmt: skip
            keys = load_rows(k, start, past, H, head_k, K, every * KB, C, KB)
            dx += read(keys, to_end, ds, CHANNEL, DT, PRECISION)
            if DELTA:
                s = state_block(
                    k, g, b, states, index, every * KB, start - C, past, first_v, one, other, odd,
                    H, HB, HV, head, K, V, C, KB, VB, CHANNEL, GENERAL, DT, PRECISION,
                )  # fmt: skip
                reader = load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, every * KB, C, KB)
                decay_a = load_decays(g, start, past, HV, head, K, every * KB, PREDICT_NOW, CHANNEL, C, KB)
                right += read(reader, decay_a, s, CHANNEL, DT, PRECISION)
            if GENERAL:
                back = load_rows(b, start, past, HB, head_b, K, every * KB, C, KB)
                dz += read(back, to_end, ds, CHANNEL, DT, PRECISION)
        dvalue = dx
        if DELTA:
            solve = load_lower(inverse, start, past, HV, head, C)
            if GENERAL:
                within = load_lower(scores_ak, start, past, HV, head, C)
                scores_b = load_lower(scores_qb, start, past, HV, head, C)
                z = dot(solve, right + dot(within, x, DT, PRECISION), DT, PRECISION).to(DT)
                dz += scale * dot(tl.trans(scores_b), out, DT, PRECISION)
                dright = dot(tl.trans(solve), dz, DT, PRECISION)
                dvalue = dx + dot(tl.trans(within), dright, DT, PRECISION)
            else:
                x = dot(solve, right + x, DT, PRECISION)
                dright = dot(tl.trans(solve), dx, DT, PRECISION)
                dvalue = dright
            dright = dright.to(DT)
        if bonus is not None:
            dvalue += (scale * now)[:, None] * out.to(tl.float32)
        if part == 0:
            if write is not None:
                dstrength += tl.sum(dvalue * values.to(tl.float32), 1)
                dvalue = dvalue * load_gate(write, start, past, HV, head, C)[:, None]
            store_rows(dv, dvalue, start, past, HV, head, V, first_v, C, VB)
        x = x.to(DT)
        mine = state_block(
            k, g, b, states, index, first, start - C, past, first_v, one, other, odd,
            H, HB, HV, head, K, V, C, KB, VB, CHANNEL, GENERAL, DT, PRECISION,
        )  # fmt: skip
        dmine = state_gradient_block(
            q, k, g, a, erase, dstates, index_after, first, start + C, past, first_v, one, other, even,
            H, HA, HV, head, K, V, C, KB, VB, CHANNEL, DELTA, PREDICT_NOW, READ_NOW, DT, PRECISION,
        )  # fmt: skip
        at_end += tl.sum(mine.to(tl.float32) * dmine.to(tl.float32), 1)
        dqk += dot(out, tl.trans(x), DT, PRECISION)
        gq += dot(out, tl.trans(mine), DT, PRECISION)
        gk += dot(x, tl.trans(dmine), DT, PRECISION)
        if DELTA:
            dak += dot(dright, tl.trans(x), DT, PRECISION)
            ga += dot(dright, tl.trans(mine), DT, PRECISION)
        if GENERAL:
            dqb += dot(out, tl.trans(z), DT, PRECISION)
            dab += dot(dright, tl.trans(z), DT, PRECISION)
            gb += dot(z, tl.trans(dmine), DT, PRECISION)
    if write is not None:
        if part == 0:
            store_gate(dwrite, dstrength, start, past, HV, head, C)

    # Gradients of the scores: masked, and with a shared decay multiplied in.
    if CHANNEL:
        weight_q = tl.where((j <= i) if READ_NOW else (j < i), scale, 0.0)
        weight_a = tl.where(j < i, 1.0, 0.0)
    else:
        total, before, _last = shared_decay(g, start, past, HV, head, C)  # not kept while blocks of V go by
        weight_q = scale * decay_matrix(total if READ_NOW else before, total, READ_NOW, C)
        weight_a = decay_matrix(total if PREDICT_NOW else before, total, False, C)
    dqk *= weight_q
    if CHANNEL and READ_NOW:
        self_k = tl.sum(tl.where(i == j, dqk, 0.0), 1)[:, None]
    dqk = dqk.to(DT)
    dak = (dak * weight_a).to(DT)
    if GENERAL:
        dqb *= weight_q
        if CHANNEL and READ_NOW:
            self_b = tl.sum(tl.where(i == j, dqb, 0.0), 1)[:, None]
        dqb = dqb.to(DT)
        dab = (dab * weight_a).to(DT)

    col = first + tl.arange(0, KB)
    keys = load_rows(k, start, past, H, head_k, K, first, C, KB)
    queries = load_rows(q, start, past, H, head_k, K, first, C, KB)
    decay_q = load_decays(g, start, past, HV, head, K, first, READ_NOW, CHANNEL, C, KB)
    to_end, whole = load_decays_to_end(g, start, past, HV, head, K, first, CHANNEL, C, KB)
    gq *= scale * (decay_q if CHANNEL else decay_q[:, None])
    gk *= to_end if CHANNEL else to_end[:, None]
    # S' dS' without S': the decayed entry state and what was written to it
    at_end = whole * at_end + tl.sum(keys.to(tl.float32) * gk, 0)
    if DELTA:
        reader = load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, first, C, KB)
        decay_a = load_decays(g, start, past, HV, head, K, first, PREDICT_NOW, CHANNEL, C, KB)
        ga *= decay_a if CHANNEL else decay_a[:, None]
    if GENERAL:
        back = load_rows(b, start, past, HB, head_b, K, first, C, KB)
        gb *= to_end if CHANNEL else to_end[:, None]
        at_end += tl.sum(back.to(tl.float32) * gb, 0)
    for level in tl.static_range(LEVELS):
        if CHANNEL:
            mask = level_mask(2**level, C)
            from_q = decay_since_start(g, start, past, HV, head, K, first, READ_NOW, 2**level, C, KB)
            to_k = decay_to_end(g, start, past, HV, head, K, first, 2**level, C, KB)
            from_a = from_q
            if DELTA and READ_NOW != PREDICT_NOW:
                from_a = decay_since_start(g, start, past, HV, head, K, first, PREDICT_NOW, 2**level, C, KB)
        else:
            mask, from_q, to_k, from_a = j < i, 1.0, 1.0, 1.0
        more_q, more_k = pair_adjoint(dqk, queries, keys, from_q, to_k, mask, not CHANNEL, DT, PRECISION)
        gq += more_q
        gk += more_k
        if DELTA:
            more_a, more_k = pair_adjoint(dak, reader, keys, from_a, to_k, mask, not CHANNEL, DT, PRECISION)
            ga += more_a
            gk += more_k
        if GENERAL:
            more_q, more_b = pair_adjoint(dqb, queries, back, from_q, to_k, mask, not CHANNEL, DT, PRECISION)
            gq += more_q
            gb += more_b
            more_a, more_b = pair_adjoint(dab, reader, back, from_a, to_k, mask, not CHANNEL, DT, PRECISION)
            ga += more_a
            gb += more_b
    if CHANNEL and READ_NOW:
        gq += self_k * keys.to(tl.float32)
        gk += self_k * queries.to(tl.float32)
        if GENERAL:
            gq += self_b * back.to(tl.float32)
            gb += self_b * queries.to(tl.float32)

    if dg is not None:
        if CHANNEL:
            at_q, at_k = queries.to(tl.float32) * gq, keys.to(tl.float32) * gk
        else:
            at_q, at_k = tl.sum(queries.to(tl.float32) * gq, 1), tl.sum(keys.to(tl.float32) * gk, 1)
        at_row = at_q - at_k if READ_NOW else -at_k
        at_before = tl.zeros_like(at_q) if READ_NOW else at_q
        if DELTA:
            at_a = reader * ga if CHANNEL else tl.sum(reader * ga, 1)
            if PREDICT_NOW:
                at_row += at_a
            else:
                at_before += at_a
        if GENERAL:
            at_row -= back.to(tl.float32) * gb if CHANNEL else tl.sum(back.to(tl.float32) * gb, 1)
        later = tl.cumsum(at_row + at_before, 0, reverse=True) - at_before
        if CHANNEL:
            store_rows(dg, later + at_end[None, :], start, past, HV, head, K, first, C, KB)
        else:
            store_part(dg, later + tl.sum(at_end, 0), part, start, past, tokens, HV, head, C)
    if bonus is not None:
        extra = tl.load(bonus + head * K + col, mask=col < K, other=0.0).to(tl.float32)
        product = queries.to(tl.float32) * keys.to(tl.float32)
        tl.store(dbonus + (slot * HV + head) * K + col, tl.sum(dnow[:, None] * product, 0), mask=col < K)
        weight = dnow[:, None] * extra[None, :]
        gq += weight * keys.to(tl.float32)
        gk += weight * queries.to(tl.float32)
    if DELTA:
        if erase is None:
            store_rows(da, ga, start, past, HV, head, K, first, C, KB)
        else:
            store_part(derase, -tl.sum(keys.to(tl.float32) * ga, 1), part, start, past, tokens, HV, head, C)
            gk -= load_gate(erase, start, past, HV, head, C)[:, None] * ga
    if GENERAL:
        store_rows(db, gb, start, past, HV, head, K, first, C, KB)
    store_rows(dq, gq, start, past, HV, head, K, first, C, KB)
    store_rows(dk, gk, start, past, HV, head, K, first, C, KB)
