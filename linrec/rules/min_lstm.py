"""minLSTM, an LSTM without feedback."""

import torch.nn.functional as F

from linrec.engines.diagonal import DIAGONAL, DiagonalTerms, gated_terms
from linrec.rule import Channels, Options, Unpack, rule
from linrec.rules.min_gru import positive


@rule(engine=DIAGONAL, state="1", scale="1")
def min_lstm(x: Channels, f: Channels, i: Channels, **options: Unpack[Options]) -> DiagonalTerms:
    """minLSTM (Feng et al. 2024, arXiv:2410.01201).

    .. code-block:: text

        h_t = f' ⊙ h_{t-1} + i' ⊙ c(x_t),  f' = σ(f)/(σ(f)+σ(i)),  i' = 1 - f'

    c as in :func:`min_gru`. x candidate, f and i gates, all ``[B, T, D]`` before their nonlinearities. f' =
    sigmoid(-delta) with delta = softplus(-f) - softplus(-i), so that log f' keeps its digits. State ``[B, D]``;
    ``scale`` (default 1) multiplies h_t.
    """
    delta = F.softplus(-f) - F.softplus(-i)
    return gated_terms(-F.softplus(delta), delta.sigmoid() * positive(x))
