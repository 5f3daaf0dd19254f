"""Attention whose keys and values share what is cached."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.attention import ATTENTION
from linrec.engines.attention.derived import SharedTerms
from linrec.errors import ShapeError
from linrec.rule import Options, Unpack, rule
from linrec.rules.softmax_attention import GroupedQuery, Key, Value

RotatedQuery = Annotated[Tensor, Arg("B T HQ R")]
RotatedKey = Annotated[Tensor, Arg("B T H R")]


@rule(engine=ATTENTION, state="T*(K+R+V)", scale="(K+R)^-1/2")
def shared_kv_attention(
    q: GroupedQuery,
    shared: Key,
    q_rope: RotatedQuery | None = None,
    k_rope: RotatedKey | None = None,
    v_own: Value | None = None,
    **options: Unpack[Options],
) -> SharedTerms:
    """Attention with shared keys and values: the family S1, S2 (VO-RoPE), S3 (Su 2025, 'Transformer upgrade road' on
    MLA).

    .. code-block:: text

        k_j = [s_j, r_j],  v_j = [s_j, u_j],  o_t = Σ_{j≤t} softmax_j(scale [q_t, p_t]·k_j) v_j

    q ``[B, T, HQ, K]`` and p = ``q_rope`` ``[B, T, HQ, R]``, s = ``shared`` ``[B, T, H, K]``, r = ``k_rope``
    ``[B, T, H, R]``, u = ``v_own`` ``[B, T, H, V]``, HQ a multiple of H, output ``[B, T, HQ, K + V]``. S1 has all of
    them; S3 no ``v_own``; S2 neither ``k_rope`` nor ``v_own``: part of s is rotated, and the caller rotates the same
    part of the output back by the query's position. Default scale (K + R)^-1/2. The state is a
    ``SharedCache(shared, k_rope, v_own, length)``. Raises ShapeError for one rotary part without the other.
    """
    if (q_rope is None) != (k_rope is None):
        raise ShapeError("shared_kv_attention: q_rope and k_rope come together, got only one of them")
    nothing = shared[..., :0]
    whole = q if q_rope is None else torch.cat([q, q_rope], dim=-1)
    k_rope, v_own = (nothing if x is None else x for x in (k_rope, v_own))
    return SharedTerms(whole, shared, k_rope, v_own)
