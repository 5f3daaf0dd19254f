"""The delta rule with weight decay: the prediction reads the state before its decay."""

from linrec.engines.matrix import MATRIX, MatrixTerms, delta_terms
from linrec.rule import Decay, Options, Query, Strength, UnitKey, Unpack, Value, rule


@rule(engine=MATRIX, as_is=("q", "k", "v"))
def weight_decay_delta(
    q: Query, k: UnitKey, v: Value, g: Decay, beta: Strength, **options: Unpack[Options]
) -> MatrixTerms:
    """Delta rule with weight decay: predict, then decay (Schlag, Irie, Schmidhuber 2021, arXiv:2102.11174; order of Hu
    et al. 2025, arXiv:2506.02475).

    .. code-block:: text

        S_t = (e^{g_t} - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t

    One gradient step of rate beta on |S^T k - v|^2 / 2 + (1 - e^g) / (2 beta) |S|^2. Shapes as in
    :func:`gated_delta_net`, which decays first: gated_delta_net(g, beta, v) is this with beta e^g and v e^-g. The
    eigenvalue along k is e^g - beta |k|^2, which must stay above -1. State ``[B, HV, K, V]``; ``scale`` (default
    K^-1/2) multiplies q.
    """
    return delta_terms(q, k, v, g, write=beta, predict="undecayed")
