"""Gradients of what is K wide (q, k, a, b), of decays and of erase, for one block of K of a chunk.

.. code-block:: text

    dP = scale do x^T,  dL = dr x^T
    dq = scale do S^T e^{G_q} + dP k,   da = dr S^T e^{G_a} + dL k,   dk = x dS'^T e^{G_C - G} + dP^T q + dL^T a
    dG = q dq + a da - k dk - b db  (each at its own G),  + S' dS' at the last row;   dg = reversed cumulative sum

(dP, dL and the products with them carry the decay.) With erase, a = -erase k gives its gradient to k and erase.
"""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.matrix.backward_scores import (
    diagonal_of,
    through_diagonal,
    through_scores,
    weights_of_scores,
)
from linrec.kernels.matrix.groups import state_before, state_gradient_after, values_of, written_rows
from linrec.kernels.matrix.tiles import (
    dot,
    load_decays,
    load_decays_to_end,
    load_gate,
    load_reader_rows,
    load_rows,
    store_gate,
    store_rows,
)


@triton.jit
def over_values(
    do, q, k, v, g, a, b, bonus, write, erase, solved, dr, states, dstates, group, place, start, past, first, scale,
    H: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, VB: tl.constexpr, GROUP: tl.constexpr, CHANNEL: tl.constexpr,
    DELTA: tl.constexpr, GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr, READ_NOW: tl.constexpr, DT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What is a sum over V: do x^T, dr x^T, do z^T, dr z^T, do S^T, x dS'^T, dr S^T, z dS'^T, S dS', scale do w."""
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
    for block in tl.range((V + VB - 1) // VB, disable_licm=True):
        first_v = block * VB
        s = state_before(
            k, v, g, b, write, solved, states, group, place, start, past, first, first_v,
            H, HB, HV, head, K, V, C, KB, VB, CHANNEL, DELTA, GENERAL, DT, PRECISION,
        )  # fmt: skip
        ds = state_gradient_after(
            do, q, k, g, a, erase, dr, dstates, group, place, start, past, first, first_v, scale,
            H, HA, HV, head, K, V, C, KB, VB, GROUP, CHANNEL, DELTA, PREDICT_NOW, READ_NOW, DT, PRECISION,
        )  # fmt: skip
        at_end += tl.sum(s.to(tl.float32) * ds.to(tl.float32), 1)
        out = load_rows(do, start, past, HV, head, V, first_v, C, VB)
        x, z = written_rows(v, write, solved, start, past, HV, head, V, first_v, C, VB, DELTA, GENERAL)
        if bonus is not None:
            given = values_of(v, write, start, past, HV, head, V, first_v, C, VB)
            dnow += scale * tl.sum(out.to(tl.float32) * given.to(tl.float32), 1)
        dqk += dot(out, tl.trans(x), DT, PRECISION)
        gq += dot(out, tl.trans(s), DT, PRECISION)
        gk += dot(x, tl.trans(ds), DT, PRECISION)
        if DELTA:
            dright = load_rows(dr, start, past, HV, head, V, first_v, C, VB)
            dak += dot(dright, tl.trans(x), DT, PRECISION)
            ga += dot(dright, tl.trans(s), DT, PRECISION)
        if GENERAL:
            dqb += dot(out, tl.trans(z), DT, PRECISION)
            dab += dot(dright, tl.trans(z), DT, PRECISION)
            gb += dot(z, tl.trans(ds), DT, PRECISION)
    return dqk, dak, dqb, dab, gq, gk, ga, gb, at_end, dnow


@triton.jit
def decayed_gradients(
    gq, gk, ga, gb, at_end, k, g, b, start, past, first, scale,
    H: tl.constexpr, HB: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, C: tl.constexpr, KB: tl.constexpr,
    CHANNEL: tl.constexpr, DELTA: tl.constexpr, GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr,
    READ_NOW: tl.constexpr,
):  # fmt: skip
    """Products with states, with their decays; and S' dS', from what the decayed S and each written row have of it."""
    keys = load_rows(k, start, past, H, head // (HV // H), K, first, C, KB)
    decay_q = load_decays(g, start, past, HV, head, K, first, READ_NOW, CHANNEL, C, KB)
    to_end, whole = load_decays_to_end(g, start, past, HV, head, K, first, CHANNEL, C, KB)
    gq *= scale * (decay_q if CHANNEL else decay_q[:, None])
    gk *= to_end if CHANNEL else to_end[:, None]
    at_end = whole * at_end + tl.sum(keys.to(tl.float32) * gk, 0)
    if DELTA:
        decay_a = load_decays(g, start, past, HV, head, K, first, PREDICT_NOW, CHANNEL, C, KB)
        ga *= decay_a if CHANNEL else decay_a[:, None]
    if GENERAL:
        back = load_rows(b, start, past, HB, head // (HV // HB), K, first, C, KB)
        gb *= to_end if CHANNEL else to_end[:, None]
        at_end += tl.sum(back.to(tl.float32) * gb, 0)
    return gq, gk, ga, gb, at_end


@triton.jit
def at_row(x, dx, CHANNEL: tl.constexpr):
    """x dx, of each channel or in all."""
    product = x.to(tl.float32) * dx
    return product if CHANNEL else tl.sum(product, 1)


@triton.jit
def store_part(x, values, part, start, past, tokens, heads, head, C: tl.constexpr):
    """A block's part ``x[part]`` of a gate's gradient, ``[blocks, tokens, heads]``."""
    store_gate(x + part * tokens * heads, values, start, past, heads, head, C)


@triton.jit
def decay_gradient(
    dg, gq, gk, ga, gb, at_end, q, k, a, b, erase, part, start, past, first, tokens,
    H: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, C: tl.constexpr,
    KB: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr, GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr,
    READ_NOW: tl.constexpr,
):  # fmt: skip
    """dg, from gradients that have no part of the bonus: it does not decay."""
    keys = load_rows(k, start, past, H, head // (HV // H), K, first, C, KB)
    queries = load_rows(q, start, past, H, head // (HV // H), K, first, C, KB)
    here = -at_row(keys, gk, CHANNEL)
    before = tl.zeros_like(here)
    if READ_NOW:
        here += at_row(queries, gq, CHANNEL)
    else:
        before += at_row(queries, gq, CHANNEL)
    if DELTA:
        reader = load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, first, C, KB)
        if PREDICT_NOW:
            here += at_row(reader, ga, CHANNEL)
        else:
            before += at_row(reader, ga, CHANNEL)
    if GENERAL:
        here -= at_row(load_rows(b, start, past, HB, head // (HV // HB), K, first, C, KB), gb, CHANNEL)
    later = tl.cumsum(here + before, 0, reverse=True) - before
    if CHANNEL:
        store_rows(dg, later + at_end[None, :], start, past, HV, head, K, first, C, KB)
    else:
        store_part(dg, later + tl.sum(at_end, 0), part, start, past, tokens, HV, head, C)


@triton.jit
def through_bonus(
    gq, gk, dnow, q, k, bonus, dbonus, slot, start, past, first,
    H: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, C: tl.constexpr, KB: tl.constexpr,
):  # fmt: skip
    """The gradients of q and k with what they have through the bonus, whose own is stored."""
    keys = load_rows(k, start, past, H, head // (HV // H), K, first, C, KB).to(tl.float32)
    queries = load_rows(q, start, past, H, head // (HV // H), K, first, C, KB).to(tl.float32)
    col = first + tl.arange(0, KB)
    tl.store(dbonus + (slot * HV + head) * K + col, tl.sum(dnow[:, None] * queries * keys, 0), mask=col < K)
    weight = dnow[:, None] * tl.load(bonus + head * K + col, mask=col < K, other=0.0).to(tl.float32)[None, :]
    return gq + weight * keys, gk + weight * queries


@triton.jit
def key_gradients(
    do, q, k, v, g, a, b, bonus, write, erase, solved, dr, states, dstates,
    dq, dk, dg, da, db, dbonus, derase, part, slot, group, place, start, past, tokens, scale,
    H: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, HV: tl.constexpr, head, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, VB: tl.constexpr, GROUP: tl.constexpr, LEVELS: tl.constexpr,
    CHANNEL: tl.constexpr, DELTA: tl.constexpr, GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr,
    READ_NOW: tl.constexpr, DT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of what is K wide, and of g and erase, of one block of K."""
    first = part * KB
    dqk, dak, dqb, dab, gq, gk, ga, gb, at_end, dnow = over_values(
        do, q, k, v, g, a, b, bonus, write, erase, solved, dr, states, dstates, group, place, start, past, first, scale,
        H, HA, HB, HV, head, K, V, C, KB, VB, GROUP, CHANNEL, DELTA, GENERAL, PREDICT_NOW, READ_NOW, DT, PRECISION,
    )  # fmt: skip
    of_q, of_a = weights_of_scores(g, start, past, scale, HV, head, C, CHANNEL, PREDICT_NOW, READ_NOW)
    dqk, dqb = dqk * of_q, dqb * of_q
    self_k, self_b = diagonal_of(dqk, C), diagonal_of(dqb, C)
    dqk, dqb, dak, dab = dqk.to(DT), dqb.to(DT), (dak * of_a).to(DT), (dab * of_a).to(DT)

    gq, gk, ga, gb, at_end = decayed_gradients(
        gq, gk, ga, gb, at_end, k, g, b, start, past, first, scale,
        H, HB, HV, head, K, C, KB, CHANNEL, DELTA, GENERAL, PREDICT_NOW, READ_NOW,
    )  # fmt: skip
    for level in tl.static_range(LEVELS):
        gq, gk, ga, gb = through_scores(
            dqk, dak, dqb, dab, gq, gk, ga, gb, q, k, g, a, b, erase, start, past, first,
            H, HA, HB, HV, head, K, C, KB, level, CHANNEL, DELTA, GENERAL, PREDICT_NOW, READ_NOW, DT, PRECISION,
        )  # fmt: skip
    if CHANNEL and READ_NOW:
        gq, gk, gb = through_diagonal(
            self_k, self_b, gq, gk, gb, q, k, b, start, past, first, H, HB, HV, head, K, C, KB, GENERAL
        )
    if dg is not None:
        decay_gradient(
            dg, gq, gk, ga, gb, at_end, q, k, a, b, erase, part, start, past, first, tokens,
            H, HA, HB, HV, head, K, C, KB, CHANNEL, DELTA, GENERAL, PREDICT_NOW, READ_NOW,
        )  # fmt: skip
    if bonus is not None:
        gq, gk = through_bonus(
            gq, gk, dnow, q, k, bonus, dbonus, slot, start, past, first, H, HV, head, K, C, KB
        )
    if DELTA:
        if erase is None:
            store_rows(da, ga, start, past, HV, head, K, first, C, KB)
        else:
            keys = load_rows(k, start, past, H, head // (HV // H), K, first, C, KB)
            store_part(derase, -tl.sum(keys.to(tl.float32) * ga, 1), part, start, past, tokens, HV, head, C)
            gk -= load_gate(erase, start, past, HV, head, C)[:, None] * ga
    if GENERAL:
        store_rows(db, gb, start, past, HV, head, K, first, C, KB)
    store_rows(dq, gq, start, past, HV, head, K, first, C, KB)
    store_rows(dk, gk, start, past, HV, head, K, first, C, KB)
