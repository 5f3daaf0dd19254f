"""RWKV-7: the general delta rule with a learning rate for every channel."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MATRIX, MatrixTerms, on_value_heads
from linrec.rule import ChannelDecay, ChannelStrength, Key, Options, Query, Unpack, Value, rule

Removal = Annotated[Tensor, Arg("B T H K", draw="unit")]


@rule(engine=MATRIX, scale="1")
def rwkv7(
    q: Query,
    k: Key,
    v: Value,
    g: ChannelDecay,
    kappa: Removal,
    eta: ChannelStrength,
    **options: Unpack[Options],
) -> MatrixTerms:
    """RWKV-7, Goose (Peng et al. 2025, arXiv:2503.14456).

    .. code-block:: text

        S_t = (Diag(e^{g_t}) - (η_t⊙κ_t) κ_tᵀ) S_{t-1} + k_t v_tᵀ,  o_t = S_tᵀ q_t

    q (the paper's r), k (its replacement key) ``[B, T, H, K]``, v ``[B, T, HV, V]``, g ``[B, T, HV, K]`` log-decay <= 0
    (the layer's lies in (-e^{-1/2}, 0)), kappa ``[B, T, H, K]`` the removal key of unit norm, eta ``[B, T, HV, K]`` in
    (0, 1). kappa reads the state before its decay. The paper's bonus (r . (rho * k)) v is added by the layer after its
    norm. State ``[B, HV, K, V]``; ``scale`` (default 1) multiplies q.
    """
    return MatrixTerms(q, k, v, g, a=-kappa, b=eta * on_value_heads(kappa, eta))
