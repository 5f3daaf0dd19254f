"""Segments of time, for batches too small to fill a GPU: what each does to any state, then their entry states in turn.

A run of chunks maps its entry state to S' = M S + N. M is the exit state that the identity leads to when nothing is
written, N the one that zero leads to, so one kernel finds both, column by column, for all segments at once; an
additive rule's M is diagonal. After that every segment is a sequence of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.matrix.tiles import (
    dot,
    load_gate,
    load_rows,
    load_state,
    sequence,
    state_after,
    store_state,
)


@triton.jit
def segment_maps(
    k, v, g, a, b, write, erase, inverse, scores_ak, cu_seqlens, maps, length,
    H: tl.constexpr, HV: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, VB: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr,
    GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``maps`` ``[segments, HV, K, V + K]``: N, then M; grid (blocks of V + blocks of K, segments * HV)."""
    VALUES: tl.constexpr = (V + VB - 1) // VB
    block = tl.program_id(0)
    written = block < VALUES
    n, head = tl.program_id(1) // HV, tl.program_id(1) % HV
    DT: tl.constexpr = v.dtype.element_ty
    first, past, _ = sequence(n, cu_seqlens, length, C)
    column = tl.where(written, block, block - VALUES) * VB
    i, j = tl.arange(0, KB)[:, None], column + tl.arange(0, VB)[None, :]
    s = tl.where((i == j) & (not written), 1.0, 0.0)
    width = tl.where(written, V, 0)  # past it nothing is loaded: the values of a map are zeros
    for c in range(tl.cdiv(past - first, C).to(tl.int32)):
        start = first + c * C
        keys = load_rows(k, start, past, H, head // (HV // H), K, 0, C, KB)
        x = load_rows(v, start, past, HV, head, width, column, C, VB)
        if write is not None:
            x = x.to(tl.float32) * load_gate(write, start, past, HV, head, C)[:, None]
        s, _solved = state_after(
            s, x, keys, k, g, a, b, erase, inverse, scores_ak, start, past, H, HA, HB, HV, head, K, C, KB,
            CHANNEL, DELTA, GENERAL, PREDICT_NOW, DT, PRECISION,
        )  # fmt: skip
    to = (n.to(tl.int64) * HV + head) * K * (V + K) + i * (V + K) + j + tl.where(written, 0, V)
    tl.store(maps + to, s, mask=(i < K) & (j < tl.where(written, V, K)))


@triton.jit
def entry_of_segments(
    maps, state, entries, segments,
    HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KB: tl.constexpr, RB: tl.constexpr, VB: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``entries`` ``[sequences * segments, HV, K, V]``: the state before each; grid (blocks of V, sequences * HV).

    RB rows of a state are found at a time, and the whole is read again, since M is too large to have on chip.
    """
    first_v = tl.program_id(0) * VB
    n, head = (tl.program_id(1) // HV).to(tl.int64), tl.program_id(1) % HV
    if state is None:
        s = tl.zeros((KB, VB), tl.float32)
    else:
        s = load_state(state, n * HV + head, 0, K, V, first_v, KB, VB).to(tl.float32)
    store_state(entries, s, n * segments * HV + head, 0, K, V, first_v, KB, VB)
    for segment in range(segments - 1):
        at = (n * segments + segment) * HV + head
        for block in range((K + RB - 1) // RB):
            row, col = block * RB + tl.arange(0, RB), tl.arange(0, KB)
            base = maps + at * K * (V + K) + row[:, None] * (V + K)
            m = tl.load(base + V + col[None, :], mask=(row < K)[:, None] & (col < K)[None, :], other=0.0)
            value = first_v + tl.arange(0, VB)
            new = tl.load(base + value[None, :], mask=(row < K)[:, None] & (value < V)[None, :], other=0.0)
            new += dot(m, s, tl.float32, PRECISION)
            store_state(entries, new, at + HV, block * RB, K, V, first_v, RB, VB)
        tl.debug_barrier()
        s = load_state(entries, at + HV, 0, K, V, first_v, KB, VB)
