"""Tensor product attention (TPA)."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.attention import ATTENTION
from linrec.engines.attention.derived import FactorTerms
from linrec.rule import Options, Query, Unpack, rule

KeyHeads = Annotated[Tensor, Arg("B T R H")]
KeyFactors = Annotated[Tensor, Arg("B T R K")]
ValueHeads = Annotated[Tensor, Arg("B T RV H")]
ValueFactors = Annotated[Tensor, Arg("B T RV V")]


@rule(engine=ATTENTION, state="T*(R*(H+K)+RV*(H+V))/H")
def tensor_product_attention(
    q: Query, a_k: KeyHeads, b_k: KeyFactors, a_v: ValueHeads, b_v: ValueFactors, **options: Unpack[Options]
) -> FactorTerms:
    """Tensor product attention, TPA (Zhang et al. 2025, arXiv:2501.06425).

    .. code-block:: text

        K_j = (1/R) Σ_r a_jr b_jrᵀ,  V_j likewise,  o_t = Σ_{j≤t} softmax_j(scale q_t·K_j) V_j

    The factors of V are a_v and b_v, RV of them. q ``[B, T, H, K]``, a_k ``[B, T, R, H]``, b_k ``[B, T, R, K]``
    (rotated by the caller), a_v ``[B, T, RV, H]``, b_v ``[B, T, RV, V]``; ``scale`` (default K^-1/2) multiplies q. The
    state is a ``FactorCache`` of the factors: R (H + K) + RV (H + V) floats a token for all heads together.
    """
    return FactorTerms(q, a_k, b_k, a_v, b_v)
