"""Longhorn's implicit step: the delta rule with a step that no key can make unstable."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MATRIX, MatrixTerms, delta_terms, on_value_heads
from linrec.rule import Key, Options, Query, Unpack, Value, rule

Penalty = Annotated[Tensor, Arg("B T HV", draw="positive")]


@rule(engine=MATRIX)
def longhorn_delta(q: Query, k: Key, v: Value, beta: Penalty, **options: Unpack[Options]) -> MatrixTerms:
    """Longhorn's exact online regression, for a beta by head (Liu et al. 2024, arXiv:2407.14207).

    .. code-block:: text

        S_t = argmin_S |S - S_{t-1}|² + β_t |Sᵀk_t - v_t|²,  o_t = S_tᵀ q_t

        S_t = S_{t-1} + ε_t k_t (v_t - S_{t-1}ᵀk_t)ᵀ,  ε_t = β_t / (1 + β_t |k_t|²)

    q, k ``[B, T, H, K]`` of any norm (the eigenvalue along k is 1 / (1 + beta |k|^2)), v ``[B, T, HV, V]``, beta
    ``[B, T, HV]`` > 0. State ``[B, HV, K, V]``; ``scale`` (default K^-1/2) multiplies q. The published layer's diagonal
    approximation of it is an elementwise scan and another rule.
    """
    step = beta / (1 + beta * on_value_heads(k, beta).square().sum(-1))
    return delta_terms(q, k, v, write=step)
