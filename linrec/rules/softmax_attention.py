"""Softmax attention, the baseline."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.attention import ATTENTION, AttentionTerms
from linrec.errors import ShapeError
from linrec.rule import rule

GroupedQuery = Annotated[Tensor, Arg("B T HQ K")]
Key = Annotated[Tensor, Arg("B T H K")]
Value = Annotated[Tensor, Arg("B T H V")]


@rule(
    engine=ATTENTION,
    cite="Vaswani et al. 2017, arXiv:1706.03762",
    equation="o_t = Σ_{j≤t} softmax_j(scale q_t·k_j) v_j",
    state="T*(K+V)",
)
def softmax_attention(q: GroupedQuery, k: Key, v: Value, window: int | None = None) -> AttentionTerms:
    """Causal softmax attention (Vaswani et al. 2017, arXiv:1706.03762), with grouped query heads.

    .. code-block:: text

        o_t = sum_{j <= t} softmax_j(scale q_t . k_j) v_j          (and t - j < window, if there is one)

    q ``[B, T, HQ, K]``, k ``[B, T, H, K]``, v ``[B, T, H, V]``, HQ a multiple of H (query head h reads key head
    h // (HQ // H)). The state is a ``KVCache(k, v, length)``, which grows by K + V floats a token and key head,
    with a window up to window - 1 tokens only. ``chunkwise`` attends for ``chunk_size`` queries at a time;
    default scale K^-1/2. Raises ShapeError for a window below 1.
    """
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ShapeError(f"softmax_attention: window must be None or a positive integer, got {window!r}")
    return AttentionTerms(q, k, v, window=window)
