"""Muon's step: a gradient matrix with its singular values moved near one."""

from __future__ import annotations

from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(gradient: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iterations X <- a X + (b X X^T + c (X X^T)^2) X from X = G / |G|, of every gradient
    ``[..., K, V]``.

    Five steps bring the singular values into about [0.5, 1.5]; a zero gradient stays zero.
    """
    a, b, c = COEFFICIENTS
    tall = gradient.shape[-2] > gradient.shape[-1]
    x = gradient.mT if tall else gradient
    x = x * (x.square().sum((-2, -1), keepdim=True) + 1e-14).rsqrt()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
