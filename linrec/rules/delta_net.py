"""The delta rule."""

from linrec.engines.matrix import MATRIX, MatrixTerms, delta_terms
from linrec.rule import Options, Query, Strength, UnitKey, Unpack, Value, rule


@rule(engine=MATRIX, as_is=("q", "k", "v"))
def delta_net(q: Query, k: UnitKey, v: Value, beta: Strength, **options: Unpack[Options]) -> MatrixTerms:
    """Delta rule (Schlag, Irie, Schmidhuber 2021, arXiv:2102.11174; parallel form Yang et al. 2024, arXiv:2406.06484).

    .. code-block:: text

        S_t = (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t

    One step of gradient descent of rate beta_t on |S^T k_t - v_t|^2 / 2. q, k ``[B, T, H, K]`` (contractive iff 0 <=
    beta |k|^2 <= 2), v ``[B, T, HV, V]``, beta ``[B, T, HV]``. State ``[B, HV, K, V]``; ``scale`` (default K^-1/2)
    multiplies q.
    """
    return delta_terms(q, k, v, write=beta)
