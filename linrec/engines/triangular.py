"""The triangular solve that the delta rules, DeltaFormer and PaTH share."""

from __future__ import annotations

import torch
from torch import Tensor


def solve_unit_lower(system: Tensor, rhs: Tensor) -> Tensor:
    """X with (I - system) X = rhs for a strictly lower triangular system, by forward substitution.

    Only the part below the diagonal is read. Never by Neumann doubling: powers of the system grow
    combinatorially when keys are alike.
    """
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
