"""Gated delta rule."""

from linrec.engines.matrix import MATRIX, MatrixTerms, delta_terms
from linrec.rule import Decay, Options, Query, Strength, UnitKey, Unpack, Value, rule


@rule(engine=MATRIX, as_is=("q", "k", "v"))
def gated_delta_net(
    q: Query, k: UnitKey, v: Value, g: Decay, beta: Strength, **options: Unpack[Options]
) -> MatrixTerms:
    """Gated delta rule: decay first, then predict (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464).

    .. code-block:: text

        S_t = e^{g_t} (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,  o_t = S_tᵀ q_t

    q, k ``[B, T, H, K]`` (k of unit norm, or beta |k|^2 <= 2: the recurrence is unstable beyond), v ``[B, T, HV, V]``,
    g ``[B, T, HV]`` log-decay <= 0, beta ``[B, T, HV]`` write strength, in (0, 2) for negative eigenvalues. State
    ``[B, HV, K, V]``; ``scale`` (default K^-1/2) multiplies q. g = 0 is DeltaNet.
    """
    return delta_terms(q, k, v, g, write=beta)
