"""One token of every row, the state read and written once, in place."""

from __future__ import annotations

import triton
import triton.language as tl

from linrec.kernels.matrix.tiles import load_state, store_state


@triton.jit
def vector(x, row, heads, head, width, W: tl.constexpr):
    """float32 values of ``x[row, head]``."""
    i = tl.arange(0, W)
    return tl.load(x + (row * heads + head) * width + i, mask=i < width, other=0.0).to(tl.float32)


@triton.jit
def number(x, row, heads, head):
    """float32 value of ``x[row, head]``."""
    return tl.load(x + row * heads + head).to(tl.float32)


@triton.jit
def prediction(a, k, erase, s, row, head, H, HA, HV, K, KB: tl.constexpr):
    """a S, with -erase k for a where erase is given."""
    if erase is None:
        reader = vector(a, row, HA, head // (HV // HA), K, KB)
    else:
        reader = -number(erase, row, HV, head) * vector(k, row, H, head // (HV // H), K, KB)
    return tl.sum(reader[:, None] * s, 0)


@triton.jit
def decode(
    q, k, v, g, a, b, bonus, write, erase, state, o, scale,
    H: tl.constexpr, HV: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    KB: tl.constexpr, VB: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr, GENERAL: tl.constexpr,
    PREDICT_NOW: tl.constexpr, READ_NOW: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of V, rows * HV). The token's arguments have no time axis; ``state`` ``[rows, HV, K, V]``."""
    first_v = tl.program_id(0) * VB
    row, head = (tl.program_id(1) // HV).to(tl.int64), tl.program_id(1) % HV
    head_k = head // (HV // H)
    at = row * HV + head
    s = load_state(state, at, 0, K, V, first_v, KB, VB)
    query, key = vector(q, row, H, head_k, K, KB), vector(k, row, H, head_k, K, KB)
    col = first_v + tl.arange(0, VB)
    x = tl.load(v + at * V + col, mask=col < V, other=0.0).to(tl.float32)
    if write is not None:
        x *= number(write, row, HV, head)
    out = tl.zeros((VB,), tl.float32)
    if not READ_NOW:
        out += tl.sum(query[:, None] * s, 0)
    z = tl.zeros((VB,), tl.float32)
    if DELTA and not PREDICT_NOW:
        z = prediction(a, k, erase, s, row, head, H, HA, HV, K, KB)
    if g is not None:
        s *= tl.exp(vector(g, row, HV, head, K, KB))[:, None] if CHANNEL else tl.exp(number(g, row, HV, head))
    if DELTA and PREDICT_NOW:
        z = prediction(a, k, erase, s, row, head, H, HA, HV, K, KB)
    if GENERAL:
        s += vector(b, row, HB, head // (HV // HB), K, KB)[:, None] * z[None, :]
        s += key[:, None] * x[None, :]
    else:
        s += key[:, None] * (x + z)[None, :]
    if READ_NOW:
        out += tl.sum(query[:, None] * s, 0)
    if bonus is not None:
        out += tl.sum(query * vector(bonus, 0, HV, head, K, KB) * key, 0) * x
    tl.store(o + at * V + col, (scale * out).to(o.dtype.element_ty), mask=col < V)
    store_state(state, s, at, 0, K, V, first_v, KB, VB)
