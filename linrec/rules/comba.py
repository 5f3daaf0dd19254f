"""Comba: the delta rule with a weaker, undecayed prediction and a corrected query."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MATRIX, MatrixTerms, delta_terms, on_value_heads
from linrec.rule import Decay, Options, Query, Strength, UnitKey, Unpack, Value, rule

HeadStrength = Annotated[Tensor, Arg("HV", draw="strength")]


@rule(engine=MATRIX)
def comba(
    q: Query,
    k: UnitKey,
    v: Value,
    g: Decay,
    beta: Strength,
    d: HeadStrength,
    D: HeadStrength | None = None,
    **options: Unpack[Options],
) -> MatrixTerms:
    """Comba (Hu et al. 2025, arXiv:2506.02475): closed-loop control with feedback p_t = d k_t.

    .. code-block:: text

        S_t = (e^{g_t} - β_t d k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,  o_t = S_tᵀ (q_t - D d k_t)

    q, k ``[B, T, H, K]`` (k of unit norm), v ``[B, T, HV, V]``, g ``[B, T, HV]`` log-decay <= 0, beta ``[B, T, HV]``, d
    ``[HV]`` in (0, 1), D ``[HV]`` or None. The prediction reads the state *before* its decay. State ``[B, HV, K, V]``;
    ``scale`` (default K^-1/2) multiplies q_t - D d k_t. d = 1, D = None is :func:`weight_decay_delta`.
    """
    if D is not None:
        q, k = on_value_heads(q, v), on_value_heads(k, v)
        q = q - (D * d)[:, None] * k
    return delta_terms(q, k, v, g, write=beta, erase=beta * d, predict="undecayed")
