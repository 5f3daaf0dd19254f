"""RWKV-5: RWKV-6 with a constant decay."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.rule import Key, Options, Query, Unpack, Value, rule

ConstantDecay = Annotated[Tensor, Arg("HV K", draw="log_decay")]
Bonus = Annotated[Tensor, Arg("HV K")]


@rule(engine=MATRIX, as_is=("q", "k", "v"), scale="1")
def rwkv5(q: Query, k: Key, v: Value, g: ConstantDecay, u: Bonus, **options: Unpack[Options]) -> MatrixTerms:
    """RWKV-5, Eagle (Peng et al. 2024, arXiv:2404.05892).

    .. code-block:: text

        o_t = S_{t-1}ᵀ q_t + (q_t·(u⊙k_t)) v_t,  S_t = Diag(e^g) S_{t-1} + k_t v_tᵀ

    q (the paper's r), k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g ``[HV, K]`` log-decay <= 0 (the layer's is -e^x), u
    ``[HV, K]`` the bonus of the current token. State ``[B, HV, K, V]``; ``scale`` (default 1) multiplies q.
    """
    return MatrixTerms(q, k, v, g.expand(*v.shape[:3], -1), readout="pre", bonus=u)
