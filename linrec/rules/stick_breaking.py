"""Stick-breaking attention."""

import torch.nn.functional as F
from torch import Tensor

from linrec.engines.attention import ATTENTION, AttentionTerms
from linrec.engines.attention.fused import grouped_scores, weighted_values
from linrec.rule import Options, Unpack, rule
from linrec.rules.softmax_attention import GroupedQuery, Key, Value


def break_stick(q: Tensor, k: Tensor, v: Tensor, distance: Tensor, scale: float) -> Tensor:
    """The weighing, in logarithms: log A_ij = logsigmoid(z_ij) - sum_{j < l < i} softplus(z_il).

    q ``[B, n, HQ, K]``, k ``[B, S, H, K]``, v ``[B, S, H, V]``, distance ``[B or 1, n, S]`` i - j.
    """
    z = grouped_scores(q * scale, k)
    keep = (distance > 0)[:, None, None]
    taken = F.softplus(z).masked_fill(~keep, 0.0)
    later = F.pad(taken[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1)  # a shift, not a difference of sums
    return weighted_values((F.logsigmoid(z) - later).masked_fill(~keep, float("-inf")).exp(), v)


@rule(engine=ATTENTION, state="T*(K+V)")
def stick_breaking(q: GroupedQuery, k: Key, v: Value, **options: Unpack[Options]) -> AttentionTerms:
    """Stick-breaking attention (Tan et al. 2024, arXiv:2410.17980).

    .. code-block:: text

        A_tj = σ(z_tj) Π_{j<l<t} (1 - σ(z_tl)),  z_tj = scale q_t·k_j,  o_t = Σ_{j<t} A_tj v_j

    The nearest earlier token takes its share first, the next takes from what is left; a token does not see itself, so
    o_1 = 0, and the weights sum to at most one. No positions are needed. q ``[B, T, HQ, K]``, k ``[B, T, H, K]``, v
    ``[B, T, H, V]``; ``scale`` (default K^-1/2) multiplies q. The state is a ``KVCache(k, v, length)``.
    """
    return AttentionTerms(q, k, v, weigh=break_stick)
