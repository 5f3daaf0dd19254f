"""Forgetting attention (FoX)."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.attention import ATTENTION, AttentionTerms
from linrec.rule import Options, Unpack, rule
from linrec.rules.softmax_attention import GroupedQuery, Key, Value

QueryDecay = Annotated[Tensor, Arg("B T HQ", draw="log_decay")]


@rule(engine=ATTENTION, state="T*(K+V+1)")
def forgetting_attention(
    q: GroupedQuery, k: Key, v: Value, g: QueryDecay, **options: Unpack[Options]
) -> AttentionTerms:
    """Softmax attention with a forget gate, the Forgetting Transformer (Lin et al. 2025, arXiv:2503.02130).

    .. code-block:: text

        o_t = Σ_{j≤t} softmax_j(scale q_t·k_j + c_t - c_j) v_j,  c_t = g_1 + … + g_t

    q ``[B, T, HQ, K]``, k ``[B, T, H, K]``, v ``[B, T, H, V]``, g log-decay <= 0 (logsigmoid of the gate)
    ``[B, T, HQ]``; it is not multiplied by ``scale`` (default K^-1/2). The state is a ``GatedCache(k, v, c, length)``:
    one more number a token and query head, kept in float64 because only differences of it are used.
    """
    return AttentionTerms(q, k, v, g=g)
