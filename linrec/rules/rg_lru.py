"""The real-gated linear recurrent unit of Griffin."""

import torch
from torch import Tensor

from linrec.engines.diagonal import DIAGONAL, DiagonalTerms, gated_terms
from linrec.engines.numerics.checks import differentiated
from linrec.rule import ChannelGate, ChannelLogDecay, Channels, Options, Unpack, rule

STEEPEST = 1000.0


@rule(engine=DIAGONAL, state="1", scale="1")
def rg_lru(x: Channels, g: ChannelLogDecay, i: ChannelGate, **options: Unpack[Options]) -> DiagonalTerms:
    """Griffin's RG-LRU (De et al. 2024, arXiv:2402.19427).

    .. code-block:: text

        h_t = e^{g_t} ⊙ h_{t-1} + √(1 - e^{2 g_t}) ⊙ i_t ⊙ x_t,  o_t = h_t

    x ``[B, T, D]``, g ``[B, T, D]`` log-decay <= 0 (Griffin's is -8 softplus(L) sigmoid(r)), i ``[B, T, D]`` input
    gate. State ``[B, D]``; ``scale`` (default 1) multiplies h_t. The derivative of the root is bounded by 1000: it is
    infinite at g = 0.
    """
    return gated_terms(g, bounded_root(-torch.expm1(2 * g)) * i * x)


def bounded_root(y: Tensor) -> Tensor:
    """sqrt(y) for ``y [...]`` >= 0 with a derivative of at most 1000."""
    if not differentiated(y):
        return y.sqrt()
    floor = (0.5 / STEEPEST) ** 2
    steep = y < floor
    tangent = y.detach().sqrt() + STEEPEST * (y - y.detach())
    return torch.where(steep, tangent, torch.where(steep, floor, y).sqrt())
