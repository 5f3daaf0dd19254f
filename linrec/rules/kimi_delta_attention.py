"""Kimi delta attention: the gated delta rule with a decay for every key channel."""

from linrec.engines.matrix import MATRIX, MatrixTerms, delta_terms
from linrec.rule import ChannelDecay, Options, Query, Strength, UnitKey, Unpack, Value, rule


@rule(engine=MATRIX, as_is=("q", "k", "v"))
def kimi_delta_attention(
    q: Query, k: UnitKey, v: Value, g: ChannelDecay, beta: Strength, **options: Unpack[Options]
) -> MatrixTerms:
    """Kimi delta attention, of Kimi Linear: decay by channel first, then predict (Kimi Team 2025, arXiv:2510.26692).

    .. code-block:: text

        S_t = (I - β_t k_t k_tᵀ) Diag(e^{g_t}) S_{t-1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t

    Shapes as in :func:`gated_delta_net`, but g ``[B, T, HV, K]`` log-decay <= 0. The order matters here: Diag(e^g) and
    I - beta k k^T do not commute. Equal channels give the gated delta rule. State ``[B, HV, K, V]``; ``scale`` (default
    K^-1/2) multiplies q.
    """
    return delta_terms(q, k, v, g, write=beta)
