"""The part of the backward that needs no order: all gradients of a chunk's tokens from its entry state and dS'.

.. code-block:: text

    dP = scale do x^T,  dL = dr x^T
    dq = scale do S^T e^{G_q} + dP k,   da = dr S^T e^{G_a} + dL k,   dk = x dS'^T e^{G_C - G} + dP^T q + dL^T a
    dG = q dq + a da - k dk - b db  (each at its own G),  + S' dS' at the last row;   dg = reversed cumulative sum

(dP, dL and the products with them carry the decay). x, dr are formed once for all of V; then the blocks of K follow
one another, so that no tile is larger than C rows times V or a block of K times V. With erase, a = -erase k gives its
gradient to k and erase.
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
    load_decays,
    load_decays_to_end,
    load_gate,
    load_lower,
    load_reader_rows,
    load_rows,
    load_state,
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
def chunk_gradients(
    do, q, k, v, g, a, b, bonus, write, erase, inverse, scores_qk, scores_qb, scores_ak, states, dstates, cu_seqlens,
    dq, dk, dv, dg, da, db, dbonus, dwrite, derase, sequences, length, scale,
    H: tl.constexpr, HV: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, VB: tl.constexpr, LEVELS: tl.constexpr, SEQUENCES: tl.constexpr,
    CHANNEL: tl.constexpr, DELTA: tl.constexpr, GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr,
    READ_NOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (slots, HV); VB covers V. dq, dk, da, db are those of one value head each, ``[rows, HV, K]``."""
    DT: tl.constexpr = v.dtype.element_ty
    BLOCKS: tl.constexpr = (K + KB - 1) // KB
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, past = chunk_of_slot(slot, cu_seqlens, sequences, length, C, SEQUENCES)
    if start >= past:
        return
    index = slot * HV + head
    head_k = head // (HV // H)
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]

    # What the chunk wrote (x, and z in the general path) and the gradients of it, for all of V.
    right = tl.zeros((C, VB), tl.float32)
    dx = tl.zeros((C, VB), tl.float32)
    dz = tl.zeros((C, VB), tl.float32)
    scores = tl.zeros((C, C), tl.float32)
    now = tl.zeros((C,), tl.float32)
    for block in range(BLOCKS):
        first = block * KB
        keys = load_rows(k, start, past, H, head_k, K, first, C, KB)
        ds = load_state(dstates, index, first, K, V, 0, KB, VB)
        to_end, _ = load_decays_to_end(g, start, past, HV, head, K, first, CHANNEL, C, KB)
        dx += read(keys, to_end, ds, CHANNEL, DT, PRECISION)
        if DELTA:
            s = load_state(states, index, first, K, V, 0, KB, VB)
            reader = load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, first, C, KB)
            decay = load_decays(g, start, past, HV, head, K, first, PREDICT_NOW, CHANNEL, C, KB)
            right += read(reader, decay, s, CHANNEL, DT, PRECISION)
            if GENERAL:
                back = load_rows(b, start, past, HB, head // (HV // HB), K, first, C, KB)
                dz += read(back, to_end, ds, CHANNEL, DT, PRECISION)
        if not CHANNEL:
            if not GENERAL:
                queries = load_rows(q, start, past, H, head_k, K, first, C, KB)
                scores += dot(queries, tl.trans(keys), DT, PRECISION)
        if bonus is not None:
            queries = load_rows(q, start, past, H, head_k, K, first, C, KB)
            col = first + tl.arange(0, KB)
            extra = tl.load(bonus + head * K + col, mask=col < K, other=0.0).to(tl.float32)
            now += tl.sum(queries.to(tl.float32) * keys.to(tl.float32) * extra[None, :], 1)

    total, before, _last = shared_decay(None if CHANNEL else g, start, past, HV, head, C)
    at_q = total if READ_NOW else before
    at_a = total if PREDICT_NOW else before
    out = load_rows(do, start, past, HV, head, V, 0, C, VB)
    values = load_rows(v, start, past, HV, head, V, 0, C, VB)
    x = values.to(tl.float32)
    if write is not None:
        x = x * load_gate(write, start, past, HV, head, C)[:, None]
    dnow = scale * tl.sum(out.to(tl.float32) * x, 1)  # the bonus reads the value as it was given
    if CHANNEL or GENERAL:
        scores = load_lower(scores_qk, start, past, HV, head, C).to(tl.float32)
    else:
        scores *= decay_matrix(at_q, total, READ_NOW, C)
    dx += scale * dot(tl.trans(scores), out, DT, PRECISION)
    dright = dx
    dvalue = dx
    z = x
    if DELTA:
        solve = load_lower(inverse, start, past, HV, head, C)
        if GENERAL:
            within = load_lower(scores_ak, start, past, HV, head, C)
            z = dot(solve, right + dot(within, x, DT, PRECISION), DT, PRECISION)
            scores_b = load_lower(scores_qb, start, past, HV, head, C)
            dz += scale * dot(tl.trans(scores_b), out, DT, PRECISION)
            dright = dot(tl.trans(solve), dz, DT, PRECISION)
            dvalue = dx + dot(tl.trans(within), dright, DT, PRECISION)
        else:
            x = dot(solve, right + x, DT, PRECISION)
            dright = dot(tl.trans(solve), dx, DT, PRECISION)
            dvalue = dright
    if bonus is not None:
        dvalue += (scale * now)[:, None] * out.to(tl.float32)
    if write is not None:
        store_gate(dwrite, tl.sum(dvalue * values.to(tl.float32), 1), start, past, HV, head, C)
        dvalue = dvalue * load_gate(write, start, past, HV, head, C)[:, None]
    store_rows(dv, dvalue, start, past, HV, head, V, 0, C, VB)

    # Gradients of the scores: masked, and with a shared decay multiplied in.
    if CHANNEL:
        weight_q = tl.where((j <= i) if READ_NOW else (j < i), scale, 0.0)
        weight_a = tl.where(j < i, 1.0, 0.0)
    else:
        weight_q = scale * decay_matrix(at_q, total, READ_NOW, C)
        weight_a = decay_matrix(at_a, total, False, C)
    x = x.to(DT)
    dright = dright.to(DT)
    dqk = dot(out, tl.trans(x), DT, PRECISION) * weight_q
    if DELTA:
        dak = dot(dright, tl.trans(x), DT, PRECISION) * weight_a
    if GENERAL:
        z = z.to(DT)
        dqb = dot(out, tl.trans(z), DT, PRECISION) * weight_q
        dab = dot(dright, tl.trans(z), DT, PRECISION) * weight_a

    dtotal = tl.zeros((C,), tl.float32)  # of a shared decay: at the row itself, at the row before, at the end
    dbefore = tl.zeros((C,), tl.float32)
    dend = 0.0
    dstrength = tl.zeros((C,), tl.float32)
    for block in range(BLOCKS):
        first = block * KB
        col = first + tl.arange(0, KB)
        keys = load_rows(k, start, past, H, head_k, K, first, C, KB)
        queries = load_rows(q, start, past, H, head_k, K, first, C, KB)
        s = load_state(states, index, first, K, V, 0, KB, VB)
        ds = load_state(dstates, index, first, K, V, 0, KB, VB)
        decay_q = load_decays(g, start, past, HV, head, K, first, READ_NOW, CHANNEL, C, KB)
        to_end, whole = load_decays_to_end(g, start, past, HV, head, K, first, CHANNEL, C, KB)
        if not CHANNEL:
            decay_q = decay_q[:, None]
            to_end = to_end[:, None]
        gq = scale * dot(out, tl.trans(s), DT, PRECISION) * decay_q
        gk = dot(x, tl.trans(ds), DT, PRECISION) * to_end
        # S' dS' without S': the decayed entry state and what was written to it
        at_end = whole * tl.sum(s.to(tl.float32) * ds.to(tl.float32), 1)
        at_end += tl.sum(keys.to(tl.float32) * gk, 0)
        if DELTA:
            reader = load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, first, C, KB)
            decay_a = load_decays(g, start, past, HV, head, K, first, PREDICT_NOW, CHANNEL, C, KB)
            if not CHANNEL:
                decay_a = decay_a[:, None]
            ga = dot(dright, tl.trans(s), DT, PRECISION) * decay_a
        if GENERAL:
            back = load_rows(b, start, past, HB, head // (HV // HB), K, first, C, KB)
            gb = dot(z, tl.trans(ds), DT, PRECISION) * to_end
            at_end += tl.sum(back.to(tl.float32) * gb, 0)
        for level in tl.static_range(LEVELS):
            SPAN: tl.constexpr = 2**level
            if CHANNEL:
                mask = level_mask(SPAN, C)
                from_q = decay_since_start(g, start, past, HV, head, K, first, READ_NOW, SPAN, C, KB)
                to_k = decay_to_end(g, start, past, HV, head, K, first, SPAN, C, KB)
                from_a = from_q
                if DELTA and READ_NOW != PREDICT_NOW:
                    from_a = decay_since_start(g, start, past, HV, head, K, first, PREDICT_NOW, SPAN, C, KB)
            else:
                mask, from_q, to_k, from_a = j < i, 1.0, 1.0, 1.0
            more_q, more_k = pair_adjoint(dqk, queries, keys, from_q, to_k, mask, not CHANNEL, DT, PRECISION)
            gq += more_q
            gk += more_k
            if DELTA:
                more_a, more_k = pair_adjoint(
                    dak, reader, keys, from_a, to_k, mask, not CHANNEL, DT, PRECISION
                )
                ga += more_a
                gk += more_k
            if GENERAL:
                more_q, more_b = pair_adjoint(
                    dqb, queries, back, from_q, to_k, mask, not CHANNEL, DT, PRECISION
                )
                gq += more_q
                gb += more_b
                more_a, more_b = pair_adjoint(
                    dab, reader, back, from_a, to_k, mask, not CHANNEL, DT, PRECISION
                )
                ga += more_a
                gb += more_b
        if CHANNEL and READ_NOW:
            self_k = tl.sum(tl.where(i == j, dqk, 0.0), 1)[:, None]
            gq += self_k * keys.to(tl.float32)
            gk += self_k * queries.to(tl.float32)
            if GENERAL:
                self_b = tl.sum(tl.where(i == j, dqb, 0.0), 1)[:, None]
                gq += self_b * back.to(tl.float32)
                gb += self_b * queries.to(tl.float32)

        at_row = -keys.to(tl.float32) * gk
        at_before = tl.zeros((C, KB), tl.float32)
        if READ_NOW:
            at_row += queries.to(tl.float32) * gq
        else:
            at_before += queries.to(tl.float32) * gq
        if DELTA:
            if PREDICT_NOW:
                at_row += reader * ga
            else:
                at_before += reader * ga
        if GENERAL:
            at_row -= back.to(tl.float32) * gb
        if dg is not None:
            if CHANNEL:
                later = tl.cumsum(at_row + at_before, 0, reverse=True) - at_before + at_end[None, :]
                store_rows(dg, later, start, past, HV, head, K, first, C, KB)
            else:
                dtotal += tl.sum(at_row, 1)
                dbefore += tl.sum(at_before, 1)
                dend += tl.sum(at_end, 0)
        if bonus is not None:
            extra = tl.load(bonus + head * K + col, mask=col < K, other=0.0).to(tl.float32)
            product = queries.to(tl.float32) * keys.to(tl.float32)
            tl.store(dbonus + index * K + col, tl.sum(dnow[:, None] * product, 0), mask=col < K)
            weight = dnow[:, None] * extra[None, :]
            gq += weight * keys.to(tl.float32)
            gk += weight * queries.to(tl.float32)
        if DELTA:
            if erase is None:
                store_rows(da, ga, start, past, HV, head, K, first, C, KB)
            else:
                dstrength -= tl.sum(keys.to(tl.float32) * ga, 1)
                gk -= load_gate(erase, start, past, HV, head, C)[:, None] * ga
        if GENERAL:
            store_rows(db, gb, start, past, HV, head, K, first, C, KB)
        store_rows(dq, gq, start, past, HV, head, K, first, C, KB)
        store_rows(dk, gk, start, past, HV, head, K, first, C, KB)
    if erase is not None:
        store_gate(derase, dstrength, start, past, HV, head, C)
    if dg is not None:
        if not CHANNEL:
            later = tl.cumsum(dtotal + dbefore, 0, reverse=True) - dbefore + dend
            store_gate(dg, later, start, past, HV, head, C)
