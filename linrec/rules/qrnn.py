"""Quasi-recurrent networks: the pooling."""

import torch
from torch import Tensor

from linrec.engines.diagonal import DIAGONAL, DiagonalTerms, Tokens, gated_terms
from linrec.rule import ChannelGate, ChannelLogDecay, Channels, Options, Unpack, rule


@rule(engine=DIAGONAL, state="1", scale="1")
def qrnn(
    x: Channels,
    g: ChannelLogDecay,
    o: ChannelGate | None = None,
    i: ChannelGate | None = None,
    **options: Unpack[Options],
) -> DiagonalTerms:
    """QRNN pooling (Bradbury, Merity, Xiong, Socher 2016, arXiv:1611.01576).

    .. code-block:: text

        c_t = e^{g_t} ⊙ c_{t-1} + i_t ⊙ x_t,  h_t = o_t ⊙ c_t  (i = 1 - e^{g} and o = 1 where absent)

    g alone is f-pooling, with o fo-pooling, with both ifo-pooling. x ``[B, T, D]`` candidate (after its tanh), g
    ``[B, T, D]`` log forget gate <= 0, gates i and o ``[B, T, D]``. State ``[B, D]``; ``scale`` (default 1) multiplies
    c_t.
    """
    terms = gated_terms(g, (-torch.expm1(g) if i is None else i) * x)
    return terms if o is None else terms.reading(gate, o=o)


def gate(tokens: Tokens, h: Tensor) -> Tensor:
    """The output gate, on h ``[B, T, D]``."""
    return tokens["o"] * h
