"""Contextual position encoding."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.attention import ATTENTION, AttentionTerms
from linrec.engines.attention.engine import Weighing
from linrec.engines.attention.fused import grouped_scores, masked_softmax, weighted_values
from linrec.rule import Options, Unpack, rule
from linrec.rules.softmax_attention import GroupedQuery, Key, Value

Positions = Annotated[Tensor, Arg("E K")]


def counted_positions(emb: Tensor) -> Weighing:
    """The weighing with the embeddings e_0 .. e_{E-1} of counted positions, emb ``[E, K]``."""

    def weigh(q: Tensor, k: Tensor, v: Tensor, distance: Tensor, scale: float) -> Tensor:
        z = grouped_scores(q * scale, k)
        keep = (distance >= 0)[:, None, None]
        gates = z.sigmoid().masked_fill(~keep, 0.0)
        position = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=emb.shape[0] - 1)
        below = position.detach().floor()
        part = position - below
        codes = emb[None, :, None].expand(q.shape[0], -1, k.shape[2], -1)  # E K -> B E H K
        table = grouped_scores(q * scale, codes)
        place = below.long().clamp(min=0)  # what is not a number has no place, and remains none by ``part``
        low = table.gather(-1, place)
        high = table.gather(-1, (place + 1).clamp(max=emb.shape[0] - 1))
        return weighted_values(masked_softmax(z + low + part * (high - low), keep), v)

    return weigh


@rule(engine=ATTENTION, state="T*(K+V)")
def cope(q: GroupedQuery, k: Key, v: Value, emb: Positions, **options: Unpack[Options]) -> AttentionTerms:
    """Contextual position encoding, CoPE (Golovneva et al. 2024, arXiv:2405.18719).

    .. code-block:: text

        p_tj = min(E-1, Σ_{l=j..t} σ(q_t·k_l))
        o_t = Σ_{j≤t} softmax_j(q_t·(k_j + e[p_tj])) v_j

    with q already multiplied by ``scale`` (default K^-1/2) and e[p] interpolated between floor(p) and the next. q
    ``[B, T, HQ, K]``, k ``[B, T, H, K]``, v ``[B, T, H, V]``, emb ``[E, K]``. The state is a ``KVCache(k, v, length)``.
    """
    return AttentionTerms(q, k, v, weigh=counted_positions(emb))
