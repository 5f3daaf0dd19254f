"""Matrix products in float32 with the widest instructions of the processor.

torch multiplies float32 matrices on a CPU with MKL, which on processors other than its maker's uses half of their
width. oneDNN, which torch has as well, uses all of it, but is asked for float32 products only by those who allow that
it rounds their factors to bfloat16. It does so where a processor has matrix units for bfloat16. On all others the
products keep every digit: whether they do is tried out once, and only then are they made there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import _GeneratorContextManager, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

EXACT = 1e-5  # share of an error in a sum of products: float32 stays far below, bfloat16 far above
WORTH = 1 << 15  # numbers in a state from which setting up products in oneDNN is won back
TRIED = ((1, 256, 256, 256), (8, 64, 128, 128), (4, 32, 32, 64))  # batch, rows, inner, columns


def wide_products() -> _GeneratorContextManager[None]:
    """Inside, float32 products of matrices on the CPU are as wide as they can be without a loss of digits.

    Also a decorator. For training loops of your own: the products of layers, and those of their backward pass, count as
    well. The setting is torch's, and one for all threads; a product that another thread makes meanwhile is as exact. A
    setting that the caller has chosen (``torch.backends.mkldnn.matmul.fp32_precision``) is left alone.
    """
    return _changed("none", "bf16")


def small_products() -> _GeneratorContextManager[None]:
    """Inside :func:`wide_products`: products of so few rows that setting one up in oneDNN takes longer than it."""
    return _changed("bf16", "none")


@contextmanager
def _changed(before: str, inside: str) -> Iterator[None]:
    """The setting where it is the one and oneDNN is exact, changed to the other."""
    if torch.compiler.is_compiling() or not _exact_in_onednn() or _setting() != before:
        yield
        return
    _set(inside)
    try:
        yield
    finally:
        _set(before)


def fitting_products(state: Tensor) -> _GeneratorContextManager[None]:
    """For chunks that read and write this state of all heads: wide, where they are large enough to gain."""
    return wide_products() if state.numel() >= WORTH else small_products()


def _setting() -> str:
    return _onednn().matmul.fp32_precision


def _set(precision: str) -> None:
    _onednn().matmul.fp32_precision = precision


def _onednn() -> Any:
    """torch's settings of oneDNN, whose types do not know all of them."""
    return torch.backends.mkldnn


@cache
def _exact_in_onednn() -> bool:
    """Whether oneDNN, allowed to round to bfloat16, does not: for products of several sizes and layouts."""
    if not (_onednn().is_available() and hasattr(_onednn(), "matmul")):
        return False
    before = _setting()
    _set("bf16")
    try:
        return all(error_of(torch.bmm, *shape) < EXACT for shape in TRIED)
    finally:
        _set(before)


def error_of(
    multiply: Callable[[Tensor, Tensor], Tensor], batch: int, rows: int, inner: int, columns: int
) -> float:
    """The largest error of the entries of a batched product, as a share of the sum of the sizes of its terms.

    Of factors that float32 holds and bfloat16 does not, each as it is and transposed in memory.
    """
    x = torch.linspace(0.5, 1.5, batch * rows * inner).sin_().view(batch, rows, inner)
    y = torch.linspace(0.5, 2.5, batch * inner * columns).cos_().view(batch, inner, columns)
    exact, scale = x.double() @ y.double(), x.double().abs() @ y.double().abs()
    found = (multiply(x, y), multiply(x.mT.contiguous().mT, y), multiply(y.mT, x.mT).mT)
    return max(float(((product - exact).abs() / scale).max()) for product in found)
