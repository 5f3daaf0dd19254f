"""Softmax attention, the baseline."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.attention import ATTENTION, AttentionTerms
from linrec.errors import ShapeError
from linrec.rule import Options, Unpack, rule

GroupedQuery = Annotated[Tensor, Arg("B T HQ K")]
Key = Annotated[Tensor, Arg("B T H K")]
Value = Annotated[Tensor, Arg("B T H V")]


@rule(engine=ATTENTION, state="T*(K+V)")
def softmax_attention(
    q: GroupedQuery, k: Key, v: Value, window: int | None = None, **options: Unpack[Options]
) -> AttentionTerms:
    """Causal softmax attention with grouped query heads (Vaswani et al. 2017, arXiv:1706.03762).

    .. code-block:: text

        o_t = Σ_{j≤t} softmax_j(scale q_t·k_j) v_j

    With a ``window`` only over t - j < window. q ``[B, T, HQ, K]``, k ``[B, T, H, K]``, v ``[B, T, H, V]``, HQ a
    multiple of H (query head h reads key head h // (HQ // H)). The state is a ``KVCache(k, v, length)``, which grows by
    K + V floats a token and key head, with a window up to window - 1 tokens only. ``chunkwise`` attends for
    ``chunk_size`` queries at a time; ``scale`` (default K^-1/2) multiplies q. Raises ShapeError for a window below 1.
    """
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ShapeError(f"softmax_attention: window must be None or a positive integer, got {window!r}")
    return AttentionTerms(q, k, v, window=window)
