"""The delta rule with weight decay: the prediction reads the state before its decay."""

from linrec.engines.matrix import MATRIX, MatrixTerms, delta_terms
from linrec.rule import Decay, Query, Strength, UnitKey, Value, rule


@rule(
    engine=MATRIX,
    as_is=("q", "k", "v"),
    cite="Schlag, Irie, Schmidhuber 2021, arXiv:2102.11174; order of Hu et al. 2025, arXiv:2506.02475",
    equation="S_t = (e^{g_t} - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t",
)
def weight_decay_delta(q: Query, k: UnitKey, v: Value, g: Decay, beta: Strength) -> MatrixTerms:
    """Delta rule (arXiv:2102.11174) with weight decay, in the order of arXiv:2506.02475: predict, then decay.

    .. code-block:: text

        S_t = e^{g_t} S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T;   o_t = S_t^T (scale q_t)

    One gradient step of rate beta on |S^T k - v|^2 / 2 + (1 - e^g) / (2 beta) |S|^2. Shapes as in
    :func:`gated_delta_net`, which decays first: gated_delta_net(g, beta, v) is this with beta e^g and v e^-g.
    The eigenvalue along k is e^g - beta |k|^2, which must stay above -1. State ``[B, HV, K, V]``; default scale
    K^-1/2.
    """
    return delta_terms(q, k, v, g, write=beta, predict="undecayed")
