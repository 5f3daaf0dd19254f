"""HGRN2: gated linear attention whose key is what the decay forgets."""

import torch

from linrec.engines.matrix import MATRIX, MatrixTerms, on_value_heads
from linrec.rule import ChannelDecay, Options, Query, Unpack, Value, rule


@rule(engine=MATRIX, as_is=("v",))
def hgrn2(q: Query, v: Value, g: ChannelDecay, **options: Unpack[Options]) -> MatrixTerms:
    """HGRN2: gated linear attention with the key tied to the decay (Qin et al. 2024, arXiv:2404.07904).

    .. code-block:: text

        S_t = Diag(e^{g_t}) S_{t-1} + (1 - e^{g_t}) v_tᵀ,  o_t = S_tᵀ q_t

    q ``[B, T, H, K]``, v ``[B, T, HV, V]``, g ``[B, T, HV, K]`` log-decay <= 0. From the empty state every row of S
    stays a convex combination of values, so |S| <= max |v|. State ``[B, HV, K, V]``; ``scale`` (default K^-1/2)
    multiplies q.
    """
    return MatrixTerms(on_value_heads(q, g), -torch.expm1(g), v, g)
