"""Comba: the delta rule with a weaker, undecayed prediction and a corrected query."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MATRIX, MatrixTerms, delta_terms, on_value_heads
from linrec.rule import Decay, Query, Strength, UnitKey, Value, rule

HeadStrength = Annotated[Tensor, Arg("HV", draw="strength")]


@rule(
    engine=MATRIX,
    cite="Hu et al. 2025, arXiv:2506.02475",
    equation="S_t = (e^{g_t} - β_t d k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,  o_t = S_tᵀ (q_t - D d k_t)",
)
def comba(
    q: Query, k: UnitKey, v: Value, g: Decay, beta: Strength, d: HeadStrength, D: HeadStrength | None = None
) -> MatrixTerms:
    """Comba (Hu et al. 2025, arXiv:2506.02475): closed-loop control with feedback p_t = d k_t.

    .. code-block:: text

        S_t = e^{g_t} S_{t-1} + beta_t k_t (v_t - S_{t-1}^T p_t)^T;   o_t = S_t^T (scale (q_t - D p_t))

    q, k ``[B, T, H, K]`` (k of unit norm), v ``[B, T, HV, V]``, g ``[B, T, HV]`` log-decay <= 0, beta
    ``[B, T, HV]``, d ``[HV]`` in (0, 1), D ``[HV]`` or None. The prediction reads the state *before* its decay.
    State ``[B, HV, K, V]``; default scale K^-1/2. d = 1, D = None is :func:`weight_decay_delta`.
    """
    if D is not None:
        q, k = on_value_heads(q, v), on_value_heads(k, v)
        q = q - (D * d)[:, None] * k
    return delta_terms(q, k, v, g, write=beta, erase=beta * d, predict="undecayed")
