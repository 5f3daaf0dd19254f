"""Systems of unit lower triangular matrices, where keys are alike too."""

import pytest
import torch
import torch.nn.functional as F

from linrec.engines.numerics.triangular import BlockSystems, solve_unit_lower
from linrec.testing import relative_error

SIZES = (1, 2, 3, 16, 31, 48, 64, 65, 130)


def systems(size, keys, dtype, strength=2.0):
    """L = -strength k k^T below the diagonal, for three sets of unit keys."""
    draw = torch.randn(3, size, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    k = {"random": draw, "alike": draw[:, :1] + draw / 100, "equal": draw[:, :1].expand_as(draw)}[keys]
    k = F.normalize(k, dim=-1)
    return (-strength * k @ k.mT).tril(-1).to(dtype)


def right(size, dtype):
    return torch.randn(3, size, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))


def substituted(system, rhs):
    """Row by row."""
    rows: list[torch.Tensor] = []
    for t in range(system.shape[1]):
        known = sum((system[:, t, j, None] * rows[j] for j in range(t)), torch.zeros_like(rhs[:, 0]))
        rows.append(rhs[:, t] + known)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("keys", ["random", "alike", "equal"])
@pytest.mark.parametrize("size", SIZES)
def test_both_solvers_equal_substitution(size, keys):
    L, R = systems(size, keys, torch.float64), right(size, torch.float64)
    blocks = BlockSystems(R, 3, size)
    for _ in range(2):  # memory that is used again
        blocks.matrices.copy_(L)
        blocks.invert()
        X = blocks.solve(R, torch.empty_like(R))
        Y = blocks.solve_transposed(R, torch.empty_like(R))
    assert relative_error(X, substituted(L, R)) < 1e-10
    assert relative_error(solve_unit_lower(L, R), substituted(L, R)) < 1e-10
    assert relative_error(Y - L.mT @ Y, R) < 1e-10


@pytest.mark.parametrize("keys", ["random", "alike", "equal"])
@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_single_precision_loses_no_more_than_substitution(keys, strength):
    """What one rounding of the system does to the solution bounds what a stable algorithm may lose."""
    L, R = systems(64, keys, torch.float64, strength), right(64, torch.float64)
    want = substituted(L, R)
    allowed = 4 * max(
        relative_error(substituted(L.float(), R.float()), want),
        relative_error(substituted(L * (1 + 2**-23), R), want),
    )
    blocks = BlockSystems(R.float(), 3, 64)
    blocks.matrices.copy_(L)
    blocks.invert()
    assert relative_error(blocks.solve(R.float(), torch.empty(R.shape)), want) < allowed
    assert relative_error(solve_unit_lower(L.float(), R.float()), want) < allowed
