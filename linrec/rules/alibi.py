"""Attention with linear biases."""

import math
from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.attention import ATTENTION, AttentionTerms
from linrec.rule import Options, Unpack, rule
from linrec.rules.softmax_attention import GroupedQuery, Key, Value

__all__ = ["alibi", "alibi_decay"]

Slope = Annotated[Tensor, Arg("HQ", draw="log_decay")]


def alibi_decay(heads: int, device: torch.device | str | None = None) -> Tensor:
    """-2^(-8 h / heads) for h = 1 .. heads, float64 ``[heads]``: ALiBi's log-decays.

    If ``heads`` is no power of two, as in the paper: those of the next smaller power, then every other one of
    the next larger.
    """
    below = 2 ** math.floor(math.log2(heads))
    h = torch.arange(1, below + 1, dtype=torch.float64, device=device)
    slopes = torch.exp2(-8 * h / below)
    if below < heads:
        more = torch.arange(1, 2 * (heads - below), 2, dtype=torch.float64, device=device)
        slopes = torch.cat([slopes, torch.exp2(-4 * more / below)])
    return -slopes


@rule(engine=ATTENTION, state="T*(K+V)")
def alibi(q: GroupedQuery, k: Key, v: Value, g: Slope, **options: Unpack[Options]) -> AttentionTerms:
    """Softmax attention with linear biases (Press, Smith, Lewis 2021, arXiv:2108.12409).

    .. code-block:: text

        o_t = Σ_{j≤t} softmax_j(scale q_t·k_j + g (t - j)) v_j,  g constant per head

    That is forgetting attention with a constant gate. q ``[B, T, HQ, K]``, k ``[B, T, H, K]``, v ``[B, T, H, V]``, g
    log-decay a token <= 0, per query head ``[HQ]``; the paper's are :func:`alibi_decay`. The bias is not multiplied by
    ``scale`` (default K^-1/2). The state is a ``KVCache(k, v, length)``.
    """
    return AttentionTerms(q, k, v, slope=g)
