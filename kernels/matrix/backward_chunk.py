"""The part of the backward that needs no order: all gradients of a chunk's tokens from its entry state and dS'."""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.matrix.backward_keys import key_gradients
from linrec.kernels.matrix.backward_values import value_gradients
from linrec.kernels.matrix.groups import place_in_group
from linrec.kernels.matrix.tiles import chunk_of_slot


@triton.jit
def chunk_gradients(
    do, q, k, v, g, a, b, bonus, write, erase, scores_qk, scores_ak, solved, dr, states, dstates, cu_seqlens,
    dq, dk, dv, dg, da, db, dbonus, dwrite, derase, sequences, length, tokens, scale,
    H: tl.constexpr, HV: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, VB: tl.constexpr, GROUP: tl.constexpr, LEVELS: tl.constexpr,
    SEQUENCES: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr, GENERAL: tl.constexpr,
    PREDICT_NOW: tl.constexpr, READ_NOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of K + 1, GROUP * groups, HV). dq, dk, da and db are those of one value head each.

    Programs of one chunk differ in the block of K that they find gradients of; the last finds dv and dwrite. dg of a
    shared decay and derase are sums over K, of which each block has its part, ``[blocks, rows, HV]``.
    """
    DT: tl.constexpr = v.dtype.element_ty
    part, slot, head = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    group, place = place_in_group(slot, GROUP)
    start, past = chunk_of_slot(group, cu_seqlens, sequences, length, GROUP * C, SEQUENCES)
    start += place * C
    if start >= past:
        return
    if part == (K + KB - 1) // KB:
        value_gradients(
            do, q, k, v, g, a, bonus, write, erase, scores_qk, scores_ak, dr, dstates, dv, dwrite,
            group, place, start, past, scale, H, HA, HV, head, K, V, C, KB, VB, GROUP, CHANNEL, DELTA, GENERAL,
            PREDICT_NOW, READ_NOW, DT, PRECISION,
        )  # fmt: skip
    else:
        key_gradients(
            do, q, k, v, g, a, b, bonus, write, erase, solved, dr, states, dstates,
            dq, dk, dg, da, db, dbonus, derase, part, slot, group, place, start, past, tokens, scale,
            H, HA, HB, HV, head, K, V, C, KB, VB, GROUP, LEVELS, CHANNEL, DELTA, GENERAL, PREDICT_NOW, READ_NOW, DT,
            PRECISION,
        )  # fmt: skip
