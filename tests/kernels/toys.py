"""Small kernels whose resources and traffic are known by hand, for the tests of the report."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(x, y, z, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """z = x y, one block of z a program; the row of programs that share a block of x run side by side."""
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for at in range(0, K, BK):
        left = (rows[:, None] < M) & (at + inner[None, :] < K)
        right = (at + inner[:, None] < K) & (columns[None, :] < N)
        a = tl.load(x + rows[:, None] * K + at + inner[None, :], mask=left, other=0.0)
        b = tl.load(y + (at + inner[:, None]) * N + columns[None, :], mask=right, other=0.0)
        total += tl.dot(a, b)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(z + rows[:, None] * N + columns[None, :], total.to(z.dtype.element_ty), mask=inside)


@triton.jit
def twice(x, y, n, size: tl.constexpr):
    """Reads all of x twice: the mean first, then the difference from it."""
    total = 0.0
    for at in range(0, n, size):
        total += tl.sum(tl.load(x + at + tl.arange(0, size)), 0)
    for at in range(0, n, size):
        here = at + tl.arange(0, size)
        tl.store(y + here, tl.load(x + here) - total / n)


@triton.jit
def large(x, y, n: tl.constexpr):
    """A product of whole matrices by one program: far too large to be held in registers."""
    at = tl.arange(0, n)[:, None] * n + tl.arange(0, n)[None, :]
    a = tl.load(x + at)
    tl.store(y + at, tl.dot(a, tl.trans(a)).to(a.dtype))


@triton.jit
def exact_product(x, y, n: tl.constexpr):
    """In float32 to the last bit, which no tensor core does."""
    at = tl.arange(0, n)[:, None] * n + tl.arange(0, n)[None, :]
    a = tl.load(x + at)
    tl.store(y + at, tl.dot(a, a, input_precision="ieee"))
