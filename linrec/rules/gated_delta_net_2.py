"""Gated DeltaNet 2: separate gates for erasing and writing."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MATRIX, MatrixTerms, on_value_heads
from linrec.rule import ChannelDecay, ChannelStrength, Options, Query, UnitKey, Unpack, Value, rule

ValueStrength = Annotated[Tensor, Arg("B T HV V", draw="strength")]


@rule(engine=MATRIX)
def gated_delta_net_2(
    q: Query,
    k: UnitKey,
    v: Value,
    g: ChannelDecay,
    erase: ChannelStrength,
    write: ValueStrength,
    **options: Unpack[Options],
) -> MatrixTerms:
    """Gated DeltaNet 2: erase and write gates by channel (flash-linear-attention; after Yang, Kautz, Hatamizadeh 2024,
    arXiv:2412.06464).

    .. code-block:: text

        S_t = (I - k_t (b_t⊙k_t)ᵀ) Diag(e^{g_t}) S_{t-1} + k_t (w_t⊙v_t)ᵀ,  o_t = S_tᵀ q_t

    q, k ``[B, T, H, K]`` (k of unit norm), v ``[B, T, HV, V]``, g ``[B, T, HV, K]`` log-decay <= 0, erase
    ``[B, T, HV, K]`` (b in the equation) and write ``[B, T, HV, V]`` (w) in [0, 1]. Both equal to beta is Kimi delta
    attention; erase = 0 is gated linear attention. State ``[B, HV, K, V]``; ``scale`` (default K^-1/2) multiplies q.
    """
    return MatrixTerms(q, k, write * v, g, a=-erase * on_value_heads(k, erase), predict="decayed")
