"""Systems of unit lower triangular matrices, which the delta rules, DeltaFormer and PaTH share."""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.engines.numerics.products import small_products

LEAF = 16  # rows that a library solves as one: with more, digits are lost where keys are alike
BLOCK = 32  # rows inverted as one, for the same reason; fewer would be more calls


def solve_unit_lower(system: Tensor, rhs: Tensor) -> Tensor:
    """X with (I - system) X = rhs for a strictly lower triangular system, in differentiable calls.

    system ``[..., C, C]``, rhs ``[..., C, V]``. Only the part below the diagonal is read. Forward substitution of
    halves, down to blocks of a few rows: a library's solver of all rows at once may lose digits where keys are alike.
    Never Neumann doubling, whose powers of the system grow combinatorially there.
    """
    size = system.shape[-1]
    if size > LEAF:
        half = 1 << (size - 1).bit_length() - 1
        first = solve_unit_lower(system[..., :half, :half], rhs[..., :half, :])
        rest = rhs[..., half:, :] + system[..., half:, :half] @ first
        return torch.cat([first, solve_unit_lower(system[..., half:, half:], rest)], dim=-2)
    shape = torch.broadcast_shapes(system.shape[:-2], rhs.shape[:-2])
    return torch.linalg.solve_triangular(
        -system.expand(*shape, *system.shape[-2:]),
        rhs.expand(*shape, *rhs.shape[-2:]),
        upper=False,
        unitriangular=True,
    )


def solve_unit_lower_transposed(system: Tensor, rhs: Tensor) -> Tensor:
    """X with (I - system)^T X = rhs; only the part of ``system`` below the diagonal is read.

    system ``[..., C, C]``, rhs ``[..., C, V]``.
    """
    return torch.linalg.solve_triangular(-system.mT, rhs, upper=True, unitriangular=True)


class BlockSystems:
    """(I - L) X = R and (I - L)^T X = R for many strictly lower triangular L ``[N, C, C]`` at once.

    Blocks on the diagonal are inverted, and substituted one after the other. Inverses of single rows are merged to
    those of 2, 4, 8, … rows,

    .. code-block:: text

        [[A, 0], [-L, D]]^-1 = [[A^-1, 0], [D^-1 L A^-1, D^-1]]

    so that only true inverses are ever multiplied and nothing grows that the inverse does not hold. Two batched
    products a level cost a fraction of as many solves. The matrices lie one row apart from each other, so that the
    blocks along all diagonals follow at one distance: each level is one batch. All memory is used again.
    """

    def __init__(self, like: Tensor, count: int, size: int):
        padded = 1 << max(size - 1, 0).bit_length()
        self.size, self.block = size, min(padded, BLOCK)
        self.memory = like.new_zeros(count, padded + 1, padded)
        self.matrices = self.memory[:, :size, :size]
        self.diagonal = self.memory[:, :padded].diagonal(dim1=1, dim2=2)
        # With ones on the diagonal two rows are their own inverse.
        sizes = [1 << n for n in range(1, (self.block - 1).bit_length())]
        self.merges = [self._merge(s) for s in sizes]
        self.bounds = [(start, min(start + self.block, size)) for start in range(0, size, self.block)]
        self.inverses = [self.matrices[:, start:stop, start:stop] for start, stop in self.bounds]
        self.parts: dict[tuple[int, ...], Tensor] = {}

    def _merge(self, size: int) -> tuple[Tensor, ...]:
        """Of every 2 size by 2 size block on the diagonals: its three blocks that count, and memory for products."""
        count, _, padded = self.memory.shape
        number, step = count * padded // (2 * size), 2 * size * (padded + 1)
        blocks = (
            self.memory.as_strided((number, size, size), (step, padded, 1), row * padded + column)
            for row, column in ((0, 0), (size, size), (size, 0))
        )
        return *blocks, *self.memory.new_empty(2, number, size, size)

    @small_products()
    def invert(self) -> None:
        """Turn the blocks on the diagonals of ``matrices``, filled with L (zero on and above the diagonal), into their
        inverses."""
        self.diagonal.fill_(1)
        for first, second, below, inner, product in self.merges:
            torch.bmm(below, first, out=inner)
            below.copy_(torch.bmm(second, inner, out=product))

    @small_products()
    def solve(self, right: Tensor, out: Tensor) -> Tensor:
        """X of (I - L) X = R, after :meth:`invert`; right and out ``[N, C, V]``, which may be one tensor."""
        for inverse, (start, stop) in zip(self.inverses, self.bounds, strict=True):
            factor = self.matrices[:, start:stop, :start]
            self._substitute(inverse, right[:, start:stop], factor, out[:, :start], out[:, start:stop])
        return out

    @small_products()
    def solve_transposed(self, right: Tensor, out: Tensor) -> Tensor:
        """X of (I - L)^T X = R; right and out ``[N, C, V]``."""
        for inverse, (start, stop) in reversed(list(zip(self.inverses, self.bounds, strict=True))):
            factor = self.matrices[:, stop:, start:stop].mT
            self._substitute(inverse.mT, right[:, start:stop], factor, out[:, stop:], out[:, start:stop])
        return out

    def _substitute(self, inverse: Tensor, right: Tensor, factor: Tensor, known: Tensor, out: Tensor) -> None:
        """out = inverse (right + factor known); products go to contiguous memory, or they are made one by one."""
        if known.shape[1]:
            right = torch.baddbmm(right, factor, known, out=self._part(0, right))
        out.copy_(torch.bmm(inverse, right, out=self._part(1, right)))

    def _part(self, number: int, like: Tensor) -> Tensor:
        key = (number, *like.shape)
        if key not in self.parts:
            self.parts[key] = like.new_empty(like.shape)
        return self.parts[key]
