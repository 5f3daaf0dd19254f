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

from linrec.engines.numerics.checks import only_values
from linrec.engines.numerics.choices import Work, chosen

WORTH = 1 << 19  # numbers in a weight from which its reading counts; nothing is timed for less
COLD = 16 << 20  # bytes to read in turn, so that weights are timed as they are met: out of the nearest cache
PARTS = 32  # at most; more than one is enough, and a thread reads at least one
WIDE = (torch.float32, torch.float64)

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def special_product(x: Tensor, rows: int, width: int) -> Product | None:
    """The fastest call for one row of values, x ``[..., width]``, and a weight ``[rows, width]``; None for
    ``F.linear``.

    It looks at little, because most calls come here for nothing.
    """
    if rows * width < WORTH or x.numel() != width or x.dtype not in WIDE or torch.is_grad_enabled():
        return None
    if not x.is_cpu or torch.compiler.is_compiling():
        return None
    name = best_product(rows, width, x.dtype)
    return None if name is None or name == PLAIN else PRODUCTS[name]


def best_product(rows: int, width: int, dtype: torch.dtype) -> str | None:
    """The name in ``PRODUCTS`` of the fastest call for a weight ``[rows, width]``; None where nothing can be timed."""
    return chosen("one row times a weight", (rows, width, dtype), lambda: _works(rows, width, dtype))


def fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether nothing but values is asked for, of tensors that every product takes.

    x ``[..., width]``, weight ``[rows, width]``, bias ``[rows]``.
    """
    values = only_values(x, weight) if bias is None else only_values(x, weight, bias)
    return (
        values
        and x.dtype is weight.dtype
        and x.shape[-1] == weight.shape[1]
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
    )


def by_vector(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As the product of a matrix and a vector; x ``[..., width]`` of one row, weight ``[rows, width]``, bias
    ``[rows]``."""
    row = x.reshape(-1)
    y = torch.mv(weight, row) if bias is None else torch.addmv(bias, weight, row)
    return y.view(*x.shape[:-1], -1)


def by_parts(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As a batched product of equal parts of the weight; arguments like those of :func:`by_vector`.

    x ``[..., width]``, weight ``[rows, width]``, bias ``[rows]``.
    """
    rows, width = weight.shape
    parts = math.gcd(rows, PARTS)
    pieces = weight.view(parts, -1, width)
    # With other strides MKL takes a slow way.
    column = x.contiguous().as_strided((parts, width, 1), (0, 1, width))
    y = torch.bmm(pieces, column) if bias is None else torch.baddbmm(bias.view(parts, -1, 1), pieces, column)
    return y.view(*x.shape[:-1], -1)


PLAIN = "F.linear"
PRODUCTS: dict[str, Product] = {PLAIN: F.linear, "mv": by_vector, "bmm of parts": by_parts}


def _works(rows: int, width: int, dtype: torch.dtype) -> dict[str, Work]:
    """Each product, with another weight in turn at each call; a large weight stands for all larger ones."""
    most = max(COLD // (2 * width * dtype.itemsize), 1)
    rows = rows if rows <= most else max(most // PARTS, 1) * PARTS
    count = max(COLD // (rows * width * dtype.itemsize), 1)
    weights = torch.full((count, rows, width), 0.5, dtype=dtype, device="cpu")
    x = torch.ones(1, 1, width, dtype=dtype, device="cpu")

    def work(product: Product) -> Work:
        turn = iter(range(1 << 30))
        return lambda: product(x, weights[next(turn) % count], None)

    return {name: work(product) for name, product in PRODUCTS.items()}
