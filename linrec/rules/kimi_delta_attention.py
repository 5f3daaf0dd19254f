"""Kimi delta attention: the gated delta rule with a decay for every key channel."""

from linrec.engines.matrix import MATRIX, MatrixTerms, delta_terms
from linrec.rule import ChannelDecay, Query, Strength, UnitKey, Value, rule


@rule(
    engine=MATRIX,
    as_is=("q", "k", "v"),
    cite="Kimi Team 2025 (Kimi Linear), arXiv:2510.26692",
    equation="S_t = (I - β_t k_t k_tᵀ) Diag(e^{g_t}) S_{t-1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t",
)
def kimi_delta_attention(q: Query, k: UnitKey, v: Value, g: ChannelDecay, beta: Strength) -> MatrixTerms:
    """Kimi delta attention (Kimi Team 2025, arXiv:2510.26692): decay by channel first, then predict.

    .. code-block:: text

        X_t = Diag(e^{g_t}) S_{t-1};   S_t = X_t + beta_t k_t (v_t - X_t^T k_t)^T;   o_t = S_t^T (scale q_t)

    Shapes as in :func:`gated_delta_net`, but g ``[B, T, HV, K]`` log-decay <= 0. The order matters here:
    Diag(e^g) and I - beta k k^T do not commute. Equal channels give the gated delta rule.
    State ``[B, HV, K, V]``; default scale K^-1/2.
    """
    return delta_terms(q, k, v, g, write=beta)
