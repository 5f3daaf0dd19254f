"""Longhorn's implicit step: the delta rule with a step that no key can make unstable."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MATRIX, MatrixTerms, delta_terms, on_value_heads
from linrec.rule import Key, Query, Value, rule

Penalty = Annotated[Tensor, Arg("B T HV", draw="positive")]


@rule(
    engine=MATRIX,
    cite="Liu et al. 2024, arXiv:2407.14207",
    equation="S_t = argmin_S |S - S_{t-1}|² + β_t |Sᵀk_t - v_t|²,  o_t = S_tᵀ q_t",
)
def longhorn_delta(q: Query, k: Key, v: Value, beta: Penalty) -> MatrixTerms:
    """Longhorn's exact online regression (Liu et al. 2024, arXiv:2407.14207), for a beta by head.

    .. code-block:: text

        S_t = argmin_S |S - S_{t-1}|^2 + beta_t |S^T k_t - v_t|^2
            = S_{t-1} + eps_t k_t (v_t - S_{t-1}^T k_t)^T,   eps_t = beta_t / (1 + beta_t |k_t|^2)
        o_t = S_t^T (scale q_t)

    q, k ``[B, T, H, K]`` of any norm (the eigenvalue along k is 1 / (1 + beta |k|^2)), v ``[B, T, HV, V]``, beta
    ``[B, T, HV]`` > 0. State ``[B, HV, K, V]``; default scale K^-1/2. The published layer's diagonal
    approximation of it is an elementwise scan and another rule.
    """
    step = beta / (1 + beta * on_value_heads(k, beta).square().sum(-1))
    return delta_terms(q, k, v, write=step)
