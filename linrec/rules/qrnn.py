"""Quasi-recurrent networks: the pooling."""

import torch
from torch import Tensor

from linrec.engines.diagonal import DIAGONAL, DiagonalTerms, Tokens, gated_terms
from linrec.rule import ChannelGate, ChannelLogDecay, Channels, rule


@rule(
    engine=DIAGONAL,
    cite="Bradbury, Merity, Xiong, Socher 2016, arXiv:1611.01576",
    equation="c_t = e^{g_t} ⊙ c_{t-1} + i_t ⊙ x_t,  h_t = o_t ⊙ c_t  (i = 1 - e^{g} and o = 1 where absent)",
    state="1",
    scale="1",
)
def qrnn(
    x: Channels, g: ChannelLogDecay, o: ChannelGate | None = None, i: ChannelGate | None = None
) -> DiagonalTerms:
    """QRNN pooling (Bradbury, Merity, Xiong, Socher 2016, arXiv:1611.01576).

    .. code-block:: text

        c_t = e^{g_t} c_{t-1} + i_t x_t;   h_t = o_t scale c_t
        i absent: i = 1 - e^{g} (fo-pooling);   o absent as well: o = 1 (f-pooling);   both given: ifo-pooling

    x ``[B, T, D]`` candidate (after its tanh), g ``[B, T, D]`` log forget gate <= 0, gates i and o ``[B, T, D]``.
    State ``[B, D]``; default scale 1.
    """
    terms = gated_terms(g, (-torch.expm1(g) if i is None else i) * x)
    return terms if o is None else terms.reading(gate, o=o)


def gate(tokens: Tokens, h: Tensor) -> Tensor:
    """The output gate."""
    return tokens["o"] * h
