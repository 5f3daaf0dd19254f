"""Systems of unit lower triangular matrices, which the delta rules, DeltaFormer and PaTH share."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 16  # rows taken as one: more are fewer calls, but lose digits where keys are alike


def solve_unit_lower(system: Tensor, rhs: Tensor) -> Tensor:
    """X with (I - system) X = rhs for a strictly lower triangular system, in differentiable calls.

    Only the part below the diagonal is read. Forward substitution of halves, down to blocks of a few rows: a library's
    solver of all rows at once may lose digits where keys are alike. Never Neumann doubling, whose powers of the system
    grow combinatorially there.
    """
    size = system.shape[-1]
    if size > BLOCK:
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
    """X with (I - system)^T X = rhs; only the part of ``system`` below the diagonal is read."""
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
        self.size, padded = size, 1 << max(size - 1, 0).bit_length()
        self.memory = like.new_zeros(count, padded + 1, padded)
        self.block = min(padded, BLOCK)
        sizes = [
            1 << n for n in range(1, (self.block - 1).bit_length())
        ]  # with a diagonal of ones, one is its own
        self.products = {s: like.new_empty(2, count * padded // (2 * s), s, s) for s in sizes}
        self.parts: dict[tuple[int, ...], Tensor] = {}

    @property
    def matrices(self) -> Tensor:
        """``[N, C, C]``, to be filled with L, zero on and above the diagonal; then :meth:`invert`."""
        return self.memory[:, : self.size, : self.size]

    def invert(self) -> None:
        """Turn the blocks on the diagonals into their inverses."""
        padded = self.memory.shape[2]
        self.memory[:, :padded].diagonal(dim1=1, dim2=2).fill_(1)
        for s, (inner, product) in self.products.items():
            first, second, below = (self._blocks(s, *corner) for corner in ((0, 0), (s, s), (s, 0)))
            torch.bmm(below, first, out=inner)
            below.copy_(torch.bmm(second, inner, out=product))

    def _blocks(self, size: int, row: int, column: int) -> Tensor:
        """The size by size blocks at this corner of every 2 size by 2 size block on the diagonals."""
        padded = self.memory.shape[2]
        step = 2 * size * (padded + 1)
        count = self.memory.numel() // step
        return self.memory.as_strided((count, size, size), (step, padded, 1), row * padded + column)

    def solve(self, right: Tensor, out: Tensor) -> Tensor:
        """X of (I - L) X = R ``[N, C, V]``, after :meth:`invert`."""
        for start in range(0, self.size, self.block):
            self._substitute(self.matrices, slice(start, start + self.block), slice(start), right, out)
        return out

    def solve_transposed(self, right: Tensor, out: Tensor) -> Tensor:
        """X of (I - L)^T X = R."""
        for start in reversed(range(0, self.size, self.block)):
            stop = start + self.block
            self._substitute(self.matrices.mT, slice(start, stop), slice(stop, self.size), right, out)
        return out

    def _substitute(self, matrices: Tensor, here: slice, done: slice, right: Tensor, out: Tensor) -> None:
        """out[here] = inverse (right[here] + factor out[done]).

        Products fill contiguous memory: any other target is filled matrix by matrix.
        """
        rest = right[:, here]
        sum_, product = (self._part(number, rest) for number in range(2))
        if out[:, done].shape[1]:
            rest = torch.baddbmm(rest, matrices[:, here, done], out[:, done], out=sum_)
        out[:, here] = torch.bmm(matrices[:, here, here], rest, out=product)

    def _part(self, number: int, like: Tensor) -> Tensor:
        key = (number, *like.shape)
        if key not in self.parts:
            self.parts[key] = like.new_empty(like.shape)
        return self.parts[key]
