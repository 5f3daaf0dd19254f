"""From x' = A x + B u in continuous time to a recurrence with time step dt."""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.errors import UnknownNameError

DISCRETIZATIONS = ("zoh", "bilinear")


def discretized(A: Tensor, dt: Tensor, how: str, who: str) -> tuple[Tensor, Tensor]:
    """(log Abar, Bbar / B) for complex A with a negative real part; UnknownNameError unless ``how`` is known.

    A and dt ``[...]``, broadcast.
    """
    if how == "zoh":
        return dt * A, expm1(dt * A) / A
    if how == "bilinear":
        half = dt * A / 2
        return torch.log(1 + half) - torch.log(1 - half), dt / (1 - half)
    raise UnknownNameError(f"{who}: unknown discretization {how!r}; one of {', '.join(DISCRETIZATIONS)}")


def expm1(z: Tensor) -> Tensor:
    """e^z - 1 for complex ``z [...]``, to full precision near zero: e^x cos y - 1 = expm1(x) cos y - 2 sin^2(y/2)."""
    x, y = z.real, z.imag
    real = torch.expm1(x) * y.cos() - 2 * (y / 2).sin().square()
    return torch.complex(real, x.exp() * y.sin())
