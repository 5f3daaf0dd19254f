"""minGRU, a GRU without feedback."""

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.diagonal import DIAGONAL, DiagonalTerms, gated_terms
from linrec.rule import Channels, Options, Unpack, rule


@rule(engine=DIAGONAL, state="1", scale="1")
def min_gru(x: Channels, z: Channels, **options: Unpack[Options]) -> DiagonalTerms:
    """minGRU (Feng et al. 2024, arXiv:2410.01201).

    .. code-block:: text

        h_t = (1 - σ(z_t)) ⊙ h_{t-1} + σ(z_t) ⊙ c(x_t),  c(x) = x + ½ for x ≥ 0, σ(x) below

    x candidate and z update gate, both ``[B, T, D]`` before their nonlinearities. State ``[B, D]``; ``scale`` (default
    1) multiplies h_t.
    """
    return gated_terms(-F.softplus(z), z.sigmoid() * positive(x))


def positive(x: Tensor) -> Tensor:
    """x + 1/2 for x >= 0, sigmoid(x) below, of x ``[...]``: continuous, increasing, > 0."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())
