"""RWKV-6: a decay for every channel, and a bonus for the current token."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.rule import ChannelDecay, Key, Options, Query, Unpack, Value, rule

Bonus = Annotated[Tensor, Arg("HV K")]


@rule(engine=MATRIX, as_is=("q", "k", "v"), scale="1")
def rwkv6(q: Query, k: Key, v: Value, g: ChannelDecay, u: Bonus, **options: Unpack[Options]) -> MatrixTerms:
    """RWKV-6, Finch: reads the state before the token is written (Peng et al. 2024, arXiv:2404.05892).

    .. code-block:: text

        o_t = S_{t-1}ᵀ q_t + (q_t·(u⊙k_t)) v_t,  S_t = Diag(e^{g_t}) S_{t-1} + k_t v_tᵀ

    q (the paper's r), k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g ``[B, T, HV, K]`` log-decay <= 0 (the layer's is
    -e^x), u ``[HV, K]`` the bonus of the current token, of any sign. The state that token t reads has not been decayed
    by g_t. State ``[B, HV, K, V]``; ``scale`` (default 1) multiplies q. g = 0 and u = 1 is linear attention.
    """
    return MatrixTerms(q, k, v, g, readout="pre", bonus=u)
