"""minLSTM, an LSTM without feedback."""

import torch.nn.functional as F

from linrec.engines.diagonal import DIAGONAL, DiagonalTerms, gated_terms
from linrec.rule import Channels, rule
from linrec.rules.min_gru import positive


@rule(
    engine=DIAGONAL,
    cite="Feng et al. 2024, arXiv:2410.01201",
    equation="h_t = f' ⊙ h_{t-1} + i' ⊙ c(x_t),  f' = σ(f)/(σ(f)+σ(i)),  i' = 1 - f'",
    state="1",
    scale="1",
)
def min_lstm(x: Channels, f: Channels, i: Channels) -> DiagonalTerms:
    """minLSTM (Feng et al. 2024, arXiv:2410.01201).

    .. code-block:: text

        f' = sigmoid(f) / (sigmoid(f) + sigmoid(i));   i' = 1 - f'
        h_t = f'_t h_{t-1} + i'_t c(x_t);   o_t = scale h_t       (c as in min_gru)

    x candidate, f and i gates, all ``[B, T, D]`` before their nonlinearities. f' = sigmoid(-delta) with
    delta = softplus(-f) - softplus(-i), so that log f' keeps its digits. State ``[B, D]``; default scale 1.
    """
    delta = F.softplus(-f) - F.softplus(-i)
    return gated_terms(-F.softplus(delta), delta.sigmoid() * positive(x))
