"""PaTH attention."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.attention.path import PATH, PathTerms
from linrec.rule import Options, Unpack, rule
from linrec.rules.delta_former import KeyStrength
from linrec.rules.forgetting_attention import QueryDecay
from linrec.rules.softmax_attention import GroupedQuery, Key, Value

UnitKey = Annotated[Tensor, Arg("B T H K", draw="unit")]


@rule(engine=PATH, state="T*(K+V+1)")
def path_attention(
    q: GroupedQuery,
    k: Key,
    v: Value,
    w: UnitKey,
    beta: KeyStrength | None = None,
    g: QueryDecay | None = None,
    **options: Unpack[Options],
) -> PathTerms:
    """Position by accumulated Householder-like products, PaTH (Yang et al. 2025, arXiv:2505.16381).

    .. code-block:: text

        H_t = I - β_t w_t w_tᵀ
        o_t = Σ_{j≤t} softmax_j(scale q_tᵀ H_t … H_{j+1} k_j + c_t - c_j) v_j

    q ``[B, T, HQ, K]``, k and w ``[B, T, H, K]``, v ``[B, T, H, V]``, beta ``[B, T, H]`` (default 1; H_t is a
    contraction iff 0 <= beta |w|^2 <= 2), g log-decay <= 0 ``[B, T, HQ]`` or None, c_t = g_1 + ... + g_t; the gate is
    not multiplied by ``scale`` (default K^-1/2). The state is a ``KVCache``, or a ``GatedCache`` with a gate, of the
    *transported* keys: every token rewrites all of them.
    """
    if beta is None:
        beta = torch.ones_like(k[..., 0])
    return PathTerms(q, k, v, w, beta, g)
