"""Matrix products in float32 with the widest instructions of the processor.

torch multiplies float32 matrices on a CPU with MKL, which on processors other than its maker's uses half of their
width. oneDNN, which torch has as well, uses all of it, but is asked for float32 products only by those who allow that
it rounds their factors to bfloat16. It does so where a processor has matrix units for bfloat16. On all others the
products keep every digit: whether they do is tried out once, and only then are they made there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

EXACT = 1e-5  # of a sum of products: float32 stays far below, bfloat16 far above


@contextmanager
def wide_products() -> Iterator[None]:
    """Inside, float32 products of matrices on the CPU are as wide as they can be without a loss of digits.

    The setting is torch's, and one for all threads; a product that another thread makes meanwhile is as exact. A
    setting that the caller has chosen is left alone.
    """
    if torch.compiler.is_compiling() or not _exact_in_onednn() or _setting() != "none":
        yield
        return
    _set("bf16")
    try:
        yield
    finally:
        _set("none")


@contextmanager
def small_products() -> Iterator[None]:
    """Inside :func:`wide_products`: products of so few rows that setting one up in oneDNN takes longer than it."""
    if torch.compiler.is_compiling() or not _exact_in_onednn() or _setting() != "bf16":
        yield
        return
    _set("none")
    try:
        yield
    finally:
        _set("bf16")


def _setting() -> str:
    return torch._C._get_fp32_precision_getter("mkldnn", "matmul")


def _set(precision: str) -> None:
    torch._C._set_fp32_precision_setter("mkldnn", "matmul", precision)


@cache
def _exact_in_onednn() -> bool:
    """Whether oneDNN, allowed to round to bfloat16, does not: for products of several sizes and layouts."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch._C, "_set_fp32_precision_setter")):
        return False
    before = _setting()
    _set("bf16")
    try:
        return all(
            _error(*shape) < EXACT for shape in ((1, 256, 256, 256), (8, 64, 128, 128), (4, 32, 32, 64))
        )
    finally:
        _set(before)


def _error(batch: int, rows: int, inner: int, columns: int) -> float:
    """The largest error of the entries of a product and of that of the transposed factors."""
    x = torch.linspace(0.5, 1.5, batch * rows * inner).sin_().view(batch, rows, inner)
    y = torch.linspace(0.5, 2.5, batch * inner * columns).cos_().view(batch, inner, columns)
    exact = x.double() @ y.double()
    scale = x.double().abs() @ y.double().abs()
    found = (torch.bmm(x, y), torch.bmm(x.mT.contiguous().mT, y), torch.bmm(y.mT, x.mT).mT)
    return max(float(((product - exact).abs() / scale).max()) for product in found)
