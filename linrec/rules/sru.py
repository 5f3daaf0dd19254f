"""Simple recurrent units."""

import torch
from torch import Tensor

from linrec.engines.diagonal import DIAGONAL, DiagonalTerms, Tokens, gated_terms
from linrec.rule import ChannelGate, ChannelLogDecay, Channels, Options, Unpack, rule


@rule(engine=DIAGONAL, state="1", scale="1")
def sru(
    x: Channels, g: ChannelLogDecay, r: ChannelGate, y: Channels, **options: Unpack[Options]
) -> DiagonalTerms:
    """Simple recurrent unit, gates without feedback (Lei, Zhang, Wang, Dai, Artzi 2017, arXiv:1709.02755).

    .. code-block:: text

        c_t = e^{g_t} ⊙ c_{t-1} + (1 - e^{g_t}) ⊙ x_t,  h_t = r_t ⊙ c_t + (1 - r_t) ⊙ y_t

    x ``[B, T, D]`` candidate (W times the input), g ``[B, T, D]`` log forget gate <= 0, r ``[B, T, D]`` reset gate, y
    ``[B, T, D]`` the highway input (the unit's own input). State ``[B, D]``; ``scale`` (default 1) multiplies c_t.
    """
    return gated_terms(g, -torch.expm1(g) * x).reading(highway, r=r, y=y)


def highway(tokens: Tokens, c: Tensor) -> Tensor:
    """Reset gate between the cell, c ``[B, T, D]``, and the input."""
    return tokens["r"] * c + (1 - tokens["r"]) * tokens["y"]
