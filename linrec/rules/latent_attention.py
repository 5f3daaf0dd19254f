"""Multi-head latent attention (MLA)."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.attention import ATTENTION
from linrec.engines.attention.derived import LatentTerms
from linrec.rule import Options, Query, Unpack, rule

RotatedQuery = Annotated[Tensor, Arg("B T H R")]
Latent = Annotated[Tensor, Arg("B T C")]
RotatedKey = Annotated[Tensor, Arg("B T R")]
KeyMap = Annotated[Tensor, Arg("H C K")]
ValueMap = Annotated[Tensor, Arg("H C V")]


@rule(engine=ATTENTION, state="T*(C+R)/H", scale="(K+R)^-1/2")
def latent_attention(
    q: Query,
    q_rope: RotatedQuery,
    latent: Latent,
    k_rope: RotatedKey,
    w_k: KeyMap,
    w_v: ValueMap,
    **options: Unpack[Options],
) -> LatentTerms:
    """Multi-head latent attention, MLA (DeepSeek-V2 2024, arXiv:2405.04434).

    .. code-block:: text

        k_j = [c_j W_k, r_j],  v_j = c_j W_v,  o_t = Σ_{j≤t} softmax_j(scale [q_t, p_t]·k_j) v_j

    for each head, with c = ``latent`` ``[B, T, C]`` and r = ``k_rope`` ``[B, T, R]`` shared by all heads, q
    ``[B, T, H, K]``, p = ``q_rope`` ``[B, T, H, R]``, W_k = ``w_k`` ``[H, C, K]``, W_v = ``w_v`` ``[H, C, V]``. Both
    rotary parts come rotated; a norm on the latent belongs before the call. ``parallel`` and ``chunkwise`` build every
    head's keys and values (the training form); ``recurrent`` and ``step`` move W_k to the query and W_v to the output
    and attend to [c, r] as one key head (the decoding form). The default scale is (K + R)^-1/2 in both. The state is a
    ``LatentCache(latent, k_rope, length)``: C + R floats a token for all heads together.
    """
    return LatentTerms(torch.cat([q, q_rope], dim=-1), latent, k_rope, w_k, w_v)
