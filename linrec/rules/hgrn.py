"""HGRN: a gated linear recurrence."""

import torch

from linrec.engines.diagonal import DIAGONAL, DiagonalTerms, gated_terms
from linrec.rule import ChannelLogDecay, Channels, Options, Unpack, rule


@rule(engine=DIAGONAL, state="1", scale="1")
def hgrn(x: Channels, g: ChannelLogDecay, **options: Unpack[Options]) -> DiagonalTerms:
    """Hierarchically gated recurrence (Qin, Yang, Zhong 2023, arXiv:2311.04823).

    .. code-block:: text

        h_t = e^{g_t} ⊙ h_{t-1} + (1 - e^{g_t}) ⊙ x_t,  o_t = h_t

    x ``[B, T, D]`` candidate (after its SiLU), g ``[B, T, D]`` log-decay <= 0. State ``[B, D]``; ``scale`` (default 1)
    multiplies h_t.
    """
    return gated_terms(g, -torch.expm1(g) * x)
