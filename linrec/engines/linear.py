"""The product of one row with a weight, where only values are wanted: decoding at batch one on a CPU.

It is little arithmetic and much reading, and how fast a weight is read depends on the call and on the processor: one
library reads it for one row at half the speed of memory, another does so for parts of it in a batched product.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.checks import only_values
from linrec.engines.choices import chosen

WORTH = 1 << 18  # numbers in a weight from which its reading counts; nothing is timed for less
COLD = 16 << 20  # bytes to read in turn, so that weights are timed as they are met: out of the nearest cache
PARTS = 32  # at most; more than one is enough, and a thread reads at least one
WIDE = (torch.float32, torch.float64)

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def one_row(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """x ``[..., n]`` of one row, weight ``[m, n]``, bias ``[m]`` or None -> x weight^T + bias ``[..., m]``.

    None where this is no such product, or :func:`torch.nn.functional.linear` is the call for it.
    """
    if weight.numel() < WORTH or x.dtype is not weight.dtype or x.dtype not in WIDE:
        return None
    if x.numel() != weight.shape[1] or x.shape[-1] != weight.shape[1] or not _plain(x, weight, bias):
        return None
    name = best_product(weight.shape[0], weight.shape[1], bias is not None, weight.dtype)
    return None if name is None or name == "F.linear" else PRODUCTS[name](x, weight, bias)


def best_product(rows: int, width: int, biased: bool, dtype: torch.dtype) -> str | None:
    """The name in ``PRODUCTS`` of the fastest call for a weight ``[rows, width]``."""
    sizes = (f"[{rows}, {width}]", "with a bias" if biased else "without bias", dtype)
    return chosen("one row times a weight", sizes, lambda: _works(rows, width, biased, dtype))


def by_vector(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As the product of a matrix and a vector."""
    row = x.reshape(-1)
    y = torch.mv(weight, row) if bias is None else torch.addmv(bias, weight, row)
    return y.view(*x.shape[:-1], -1)


def by_parts(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As a batched product of equal parts of the weight."""
    rows, width = weight.shape
    parts = math.gcd(rows, PARTS)
    pieces = weight.view(parts, -1, width)
    # With other strides MKL takes a slow way.
    column = x.contiguous().as_strided((parts, width, 1), (0, 1, width))
    y = torch.bmm(pieces, column) if bias is None else torch.baddbmm(bias.view(parts, -1, 1), pieces, column)
    return y.view(*x.shape[:-1], -1)


PRODUCTS: dict[str, Product] = {"F.linear": F.linear, "mv": by_vector, "bmm of parts": by_parts}


def _works(rows: int, width: int, biased: bool, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Each product, with another weight in turn at each call; a large weight stands for all larger ones."""
    most = max(COLD // (2 * width * dtype.itemsize), 1)
    rows = rows if rows <= most else max(most // PARTS, 1) * PARTS
    count = max(COLD // (rows * width * dtype.itemsize), 1)
    weights = torch.full((count, rows, width), 0.5, dtype=dtype, device="cpu")
    x = torch.ones(1, 1, width, dtype=dtype, device="cpu")
    bias = x.new_ones(rows) if biased else None

    def work(product: Product) -> Callable[[], object]:
        turn = iter(range(1 << 30))
        return lambda: product(x, weights[next(turn) % count], bias)

    return {name: work(product) for name, product in PRODUCTS.items()}


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    values = only_values(x, weight) if bias is None else only_values(x, weight, bias)
    return values and weight.is_contiguous() and not torch.is_autocast_enabled("cpu")
