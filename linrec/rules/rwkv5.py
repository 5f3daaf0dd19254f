"""RWKV-5: RWKV-6 with a constant decay."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.rule import Key, Query, Value, rule

ConstantDecay = Annotated[Tensor, Arg("HV K", draw="log_decay")]
Bonus = Annotated[Tensor, Arg("HV K")]


@rule(
    engine=MATRIX,
    as_is=("q", "k", "v"),
    cite="Peng et al. 2024, arXiv:2404.05892",
    equation="o_t = S_{t-1}ᵀ q_t + (q_t·(u⊙k_t)) v_t,  S_t = Diag(e^g) S_{t-1} + k_t v_tᵀ",
    scale="1",
)
def rwkv5(q: Query, k: Key, v: Value, g: ConstantDecay, u: Bonus) -> MatrixTerms:
    """RWKV-5, Eagle (Peng et al. 2024, arXiv:2404.05892).

    .. code-block:: text

        o_t = S_{t-1}^T q_t + (q_t . (u * k_t)) v_t;   S_t = Diag(e^g) S_{t-1} + k_t v_t^T

    q (the paper's r), k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g ``[HV, K]`` log-decay <= 0 (the layer's is -e^x),
    u ``[HV, K]`` the bonus of the current token. State ``[B, HV, K, V]``; default scale 1.
    """
    return MatrixTerms(q, k, v, g.expand(*v.shape[:3], -1), readout="pre", bonus=u)
