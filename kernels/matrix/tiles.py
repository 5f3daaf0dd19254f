"""What the matrix kernels share on chip: where a chunk lies, its decays, and products with decays.

A *slot* numbers the chunks of a launch: sequence n of a batch has the slots from n ceil(T / C), segment n of a packed
batch those from floor(start_n / C) + n, which leaves room for every chunk without a look at the lengths.

Every exponent is a sum of log-decays, hence <= 0. A shared decay is summed in float64, where differences keep
their digits. A decay of each channel never forms differences: between row i and column j it is the product of
e^(sum from the start of i's block to i) and e^(sum after j to the end of j's block), for neighbouring blocks of 1, 2,
4 ... rows (:func:`level_factors`), so that the scores are ordinary products, one a level.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sequence(n, cu_seqlens, length, C: tl.constexpr):
    """First token, one past the last, and first slot of sequence n."""
    if cu_seqlens is None:
        first = n.to(tl.int64) * length
        past = first + length
        slot = n.to(tl.int64) * tl.cdiv(length, C)
    else:
        first = tl.load(cu_seqlens + n).to(tl.int64)
        past = tl.load(cu_seqlens + n + 1).to(tl.int64)
        slot = first // C + n
    return first, past, slot


@triton.jit
def chunk_of_slot(slot, cu_seqlens, sequences, length, C: tl.constexpr, SEQUENCES: tl.constexpr):
    """First token of the chunk in a slot, and one past the last of its sequence; no chunk if not below it."""
    if cu_seqlens is None:
        chunks = tl.cdiv(length, C)
        n = slot // chunks
        start = n.to(tl.int64) * length + (slot - n * chunks) * C
        past = (n.to(tl.int64) + 1) * length
    else:
        each = tl.arange(0, SEQUENCES)
        firsts = tl.load(cu_seqlens + each, mask=each < sequences, other=0) // C + each
        n = tl.sum(((firsts <= slot) & (each < sequences)).to(tl.int32), 0) - 1
        first = tl.load(cu_seqlens + n).to(tl.int64)
        past = tl.load(cu_seqlens + n + 1).to(tl.int64)
        start = first + (slot - (first // C + n)) * C
    return start, past


@triton.jit
def dot(x, y, DT: tl.constexpr, PRECISION: tl.constexpr):
    """x y with operands in DT, summed in float32."""
    return tl.dot(x.to(DT), y.to(DT), input_precision=PRECISION)


@triton.jit
def hold_back():
    """Loads that stand below are not moved up past here, where their values would fill registers all the while."""
    tl.debug_barrier()


@triton.jit
def rows_left(start, past, C: tl.constexpr):
    """Rows of the chunk that are in its sequence. Addresses are one number of 64 bits and small offsets from there:
    a tile of 64-bit addresses would take twice the registers of its values."""
    return tl.minimum(past - start, C).to(tl.int32)


@triton.jit
def load_rows(x, start, past, heads, head, width, first, C: tl.constexpr, W: tl.constexpr):
    """Columns first .. first + W of the rows start .. start + C of ``[rows, heads, width]``; zero outside."""
    row, col = tl.arange(0, C), tl.arange(0, W)
    base = x + (start * heads + head) * width + first
    mask = (row < rows_left(start, past, C))[:, None] & (col < width - first)[None, :]
    return tl.load(base + row[:, None] * (heads * width) + col[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(x, tile, start, past, heads, head, width, first, C: tl.constexpr, W: tl.constexpr):
    """The inverse of :func:`load_rows`."""
    row, col = tl.arange(0, C), tl.arange(0, W)
    base = x + (start * heads + head) * width + first
    mask = (row < rows_left(start, past, C))[:, None] & (col < width - first)[None, :]
    tl.store(base + row[:, None] * (heads * width) + col[None, :], tile.to(x.dtype.element_ty), mask=mask)


@triton.jit
def load_gate(x, start, past, heads, head, C: tl.constexpr):
    """float32 values of a gate ``[rows, heads]`` at the rows start .. start + C; zero past the end."""
    row = tl.arange(0, C)
    base = x + start * heads + head
    return tl.load(base + row * heads, mask=row < rows_left(start, past, C), other=0.0).to(tl.float32)


@triton.jit
def store_gate(x, values, start, past, heads, head, C: tl.constexpr):
    """The inverse of :func:`load_gate`."""
    row = tl.arange(0, C)
    base = x + start * heads + head
    tl.store(base + row * heads, values.to(x.dtype.element_ty), mask=row < rows_left(start, past, C))


@triton.jit
def load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, first, C: tl.constexpr, KB: tl.constexpr):
    """The rows a in float32, or -erase k."""
    if erase is None:
        return load_rows(a, start, past, HA, head // (HV // HA), K, first, C, KB).to(tl.float32)
    else:
        strength = load_gate(erase, start, past, HV, head, C)
        return -strength[:, None] * load_rows(k, start, past, H, head // (HV // H), K, first, C, KB).to(
            tl.float32
        )


@triton.jit
def load_lower(x, start, past, heads, head, C: tl.constexpr):
    """A lower triangular ``[C, C]`` of a chunk, kept as rows ``[rows, heads, C]``; zero above the diagonal."""
    row, col = tl.arange(0, C), tl.arange(0, C)
    base = x + (start * heads + head) * C
    mask = (row < rows_left(start, past, C))[:, None] & (col[None, :] <= row[:, None])
    return tl.load(base + row[:, None] * (heads * C) + col[None, :], mask=mask, other=0.0)


@triton.jit
def store_lower(x, tile, start, past, heads, head, C: tl.constexpr):
    """The inverse of :func:`load_lower`; what is above the diagonal is not written."""
    row, col = tl.arange(0, C), tl.arange(0, C)
    base = x + (start * heads + head) * C
    mask = (row < rows_left(start, past, C))[:, None] & (col[None, :] <= row[:, None])
    tl.store(base + row[:, None] * (heads * C) + col[None, :], tile.to(x.dtype.element_ty), mask=mask)


@triton.jit
def load_state(x, index, first, K, V, first_v, KB: tl.constexpr, VB: tl.constexpr):
    """Rows first .. of matrix ``index`` of ``[., K, V]``, columns first_v .. ; zero outside."""
    d, e = tl.arange(0, KB), tl.arange(0, VB)
    base = x + index * K * V + first * V + first_v
    mask = (d < K - first)[:, None] & (e < V - first_v)[None, :]
    return tl.load(base + d[:, None] * V + e[None, :], mask=mask, other=0.0)


@triton.jit
def store_state(x, tile, index, first, K, V, first_v, KB: tl.constexpr, VB: tl.constexpr):
    """The inverse of :func:`load_state`."""
    d, e = tl.arange(0, KB), tl.arange(0, VB)
    base = x + index * K * V + first * V + first_v
    mask = (d < K - first)[:, None] & (e < V - first_v)[None, :]
    tl.store(base + d[:, None] * V + e[None, :], tile.to(x.dtype.element_ty), mask=mask)


@triton.jit
def shared_decay(g, start, past, heads, head, C: tl.constexpr):
    """Cumulative log-decay of the chunk up to each row, up to the row before, and in all, in float64."""
    if g is None:
        step = tl.zeros((C,), tl.float64)
    else:
        step = load_gate(g, start, past, heads, head, C).to(tl.float64)
    total = tl.cumsum(step, 0)
    return total, total - step, tl.sum(step, 0)


@triton.jit
def exp32(x):
    """e^x in float32."""
    return tl.exp(x.to(tl.float32))


@triton.jit
def halves(x):
    """A float64 as the sum of two float32: differences of such keep their digits, in a third of the registers."""
    high = x.to(tl.float32)
    return high, (x - high.to(tl.float64)).to(tl.float32)


@triton.jit
def decay_matrix(at_x, at_y, DIAGONAL: tl.constexpr, C: tl.constexpr):
    """e^(at_x_i - at_y_j) for j <= i (j < i without the diagonal), else 0."""
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    keep = (j <= i) if DIAGONAL else (j < i)
    high_x, low_x = halves(at_x)
    high_y, low_y = halves(at_y)
    between = (high_x[:, None] - high_y[None, :]) + (low_x[:, None] - low_y[None, :])
    return tl.exp(tl.where(keep, between, float("-inf")))


@triton.jit
def load_shifted(
    g, start, past, heads, head, width, first,
    SHIFT: tl.constexpr, SPAN: tl.constexpr, C: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Log-decays of the row SHIFT further on, zero where that leaves the block of SPAN rows."""
    i, col = tl.arange(0, C), tl.arange(0, W)
    row = i + SHIFT
    inside = (row < rows_left(start, past, C + 1)) & (i % SPAN + SHIFT < SPAN) & (i % SPAN + SHIFT >= 0)
    base = g + (start * heads + head) * width + first
    mask = inside[:, None] & (col < width - first)[None, :]
    return tl.load(base + row[:, None] * (heads * width) + col[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def cumulative(x, SPAN: tl.constexpr, REVERSE: tl.constexpr, C: tl.constexpr, W: tl.constexpr):
    """Cumulative sums down the rows, afresh in every block of SPAN rows."""
    if SPAN == 1:
        return x
    elif SPAN == C:
        return tl.cumsum(x, 0, reverse=REVERSE)
    else:
        blocks = tl.reshape(x, (C // SPAN, SPAN, W))
        return tl.reshape(tl.cumsum(blocks, 1, reverse=REVERSE), (C, W))


@triton.jit
def decay_since_start(
    g, start, past, heads, head, width, first,
    NOW: tl.constexpr, SPAN: tl.constexpr, C: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """e^(sum of the log-decays from the start of the block of SPAN rows to each row, itself included if NOW)."""
    steps = load_shifted(g, start, past, heads, head, width, first, 0 if NOW else -1, SPAN, C, W)
    return tl.exp(cumulative(steps, SPAN, False, C, W))


@triton.jit
def decay_to_end(
    g, start, past, heads, head, width, first, SPAN: tl.constexpr, C: tl.constexpr, W: tl.constexpr
):
    """e^(sum of the log-decays after each row to the end of its block of SPAN rows)."""
    steps = load_shifted(g, start, past, heads, head, width, first, 1, SPAN, C, W)
    return tl.exp(cumulative(steps, SPAN, True, C, W))


@triton.jit
def level_mask(SPAN: tl.constexpr, C: tl.constexpr):
    """True where row i lies in an odd block of SPAN rows and column j in the block before it."""
    i, j = tl.arange(0, C)[:, None] // SPAN, tl.arange(0, C)[None, :] // SPAN
    return (i % 2 == 1) & (j == i - 1)


@triton.jit
def load_decays(
    g, start, past, heads, head, width, first,
    NOW: tl.constexpr, CHANNEL: tl.constexpr, C: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Decay from the chunk's start to each row: ``[C]`` for a shared decay, else ``[C, W]``."""
    if CHANNEL:
        return decay_since_start(g, start, past, heads, head, width, first, NOW, C, C, W)
    else:
        total, before, _ = shared_decay(g, start, past, heads, head, C)
        return exp32(total if NOW else before)


@triton.jit
def load_decays_to_end(
    g, start, past, heads, head, width, first, CHANNEL: tl.constexpr, C: tl.constexpr, W: tl.constexpr
):
    """Decay from each row to the chunk's end (``[C]`` or ``[C, W]``), and of the whole chunk (scalar or ``[W]``)."""
    if CHANNEL:
        steps = load_shifted(g, start, past, heads, head, width, first, 0, C, C, W)
        to_end = decay_to_end(g, start, past, heads, head, width, first, C, C, W)
        return to_end, tl.exp(tl.sum(steps, 0))
    else:
        total, _, last = shared_decay(g, start, past, heads, head, C)
        return exp32(last - total), exp32(last)


@triton.jit
def times_state(whole, state, CHANNEL: tl.constexpr):
    """The state decayed by a whole chunk."""
    return whole[:, None] * state if CHANNEL else whole * state


@triton.jit
def read(x, decay, state, CHANNEL: tl.constexpr, DT: tl.constexpr, PRECISION: tl.constexpr):
    """(x * decay) state."""
    if CHANNEL:
        return dot(x.to(tl.float32) * decay, state, DT, PRECISION)
    else:
        return dot(x, state, DT, PRECISION) * decay[:, None]


@triton.jit
def outer(x, decay, y, CHANNEL: tl.constexpr, DT: tl.constexpr, PRECISION: tl.constexpr):
    """(x * decay)^T y."""
    if CHANNEL:
        return dot(tl.trans(x.to(tl.float32) * decay), y, DT, PRECISION)
    else:
        return dot(tl.trans(x), y.to(tl.float32) * decay[:, None], DT, PRECISION)


@triton.jit
def bonus_of(bonus, queries, keys, head, K, first, KB: tl.constexpr):
    """sum_d q_d bonus_d k_d of each row, over the columns from ``first`` on."""
    col = first + tl.arange(0, KB)
    weight = tl.load(bonus + head * K + col, mask=col < K, other=0.0).to(tl.float32)
    return tl.sum(queries.to(tl.float32) * keys.to(tl.float32) * weight[None, :], 1)


@triton.jit
def state_after(
    s, x, keys, k, g, a, b, erase, inverse, scores_ak, start, past, H, HA, HB, HV, head, K, C: tl.constexpr,
    KB: tl.constexpr, CHANNEL: tl.constexpr, DELTA: tl.constexpr, GENERAL: tl.constexpr, PREDICT_NOW: tl.constexpr,
    DT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state after a chunk from s ``[KB, VB]``, its keys, and the values x ``[C, VB]`` given to it; KB covers K.

    With it what the delta rule has solved for, in DT: what the chunk writes with b, or without b with k.
    """
    solved = x
    if DELTA:
        reader = load_reader_rows(a, k, erase, start, past, H, HA, HV, head, K, 0, C, KB)
        decay = load_decays(g, start, past, HV, head, K, 0, PREDICT_NOW, CHANNEL, C, KB)
        r = read(reader, decay, s, CHANNEL, DT, PRECISION)
        solve = load_lower(inverse, start, past, HV, head, C)
        if GENERAL:
            r += dot(load_lower(scores_ak, start, past, HV, head, C), x, DT, PRECISION)
            solved = dot(solve, r, DT, PRECISION).to(DT)
        else:
            x = dot(solve, r + x.to(tl.float32), DT, PRECISION).to(DT)
            solved = x
    to_end, whole = load_decays_to_end(g, start, past, HV, head, K, 0, CHANNEL, C, KB)
    s = times_state(whole, s, CHANNEL) + outer(keys, to_end, x, CHANNEL, DT, PRECISION)
    if GENERAL:
        back = load_rows(b, start, past, HB, head // (HV // HB), K, 0, C, KB)
        s += outer(back, to_end, solved, CHANNEL, DT, PRECISION)
    return s, solved
