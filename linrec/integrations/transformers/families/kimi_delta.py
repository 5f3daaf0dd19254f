"""Kimi delta attention, of Kimi Linear, Bailing-Hybrid and GLM-5."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from linrec import rules
from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.families.gated_delta import delta_rule
from linrec.integrations.transformers.replacement import Replacement


def chunk_kda(
    mixing: Mixing,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """query, key, g ``[B, T, H, K]``, value ``[B, T, H, V]``, beta ``[B, T, H]``, initial_state ``[B, H, K, V]``."""
    tensors = {"q": query, "k": key, "v": value, "g": g, "beta": beta}
    o, state = delta_rule(
        rules.kimi_delta_attention,
        mixing,
        tensors,
        initial_state,
        use_qk_l2norm_in_kernel,
        output_final_state,
    )
    return o, state if output_final_state else None


def recurrent_kda(
    mixing: Mixing,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    output_final_state: bool,
    use_qk_l2norm_in_kernel: bool = False,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """The same for one token: query, key, g ``[B, 1, H, K]``, value ``[B, 1, H, V]``, beta ``[B, 1, H]``, initial_state
    ``[B, H, K, V]``."""
    return chunk_kda(
        mixing, query, key, value, g, beta, 64, initial_state, output_final_state, use_qk_l2norm_in_kernel
    )


_TENSORS = ("query", "key", "value", "g", "beta")
_STATE = ("initial_state", "output_final_state", "use_qk_l2norm_in_kernel")

REPLACEMENTS = (
    Replacement(
        ("chunk_kimi_delta_attention",),
        ((*_TENSORS, "chunk_size", *_STATE),),
        chunk_kda,
        "kimi_delta_attention",
        "chunkwise",
    ),
    Replacement(
        ("recurrent_kimi_delta_attention",),
        ((*_TENSORS, *_STATE),),
        recurrent_kda,
        "kimi_delta_attention",
        "step",
    ),
)
