"""The gated delta rule of Qwen3-Next, Qwen3.5, OLMo-Hybrid and their kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linrec import rules
from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.layout import apply
from linrec.integrations.transformers.replacement import Replacement


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / √(|x|² + eps), of the last axis."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def chunk_gated_delta_rule(
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
    """q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g and beta ``[B, T, HV]``, state ``[B, HV, K, V]``."""
    if use_qk_l2norm_in_kernel:
        query, key = unit(query.float()), unit(key.float())
    tensors = {"q": query, "k": key, "v": value, "g": g, "beta": beta}
    o, state = apply(rules.gated_delta_net, tensors, mixing.layout, initial_state)
    return o, state if output_final_state else None


def recurrent_gated_delta_rule(
    mixing: Mixing,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """The same; one token by the rule's step."""
    return chunk_gated_delta_rule(
        mixing, query, key, value, g, beta, 64, initial_state, output_final_state, use_qk_l2norm_in_kernel
    )


_STATE = ("initial_state", "output_final_state", "use_qk_l2norm_in_kernel")

REPLACEMENTS = (
    Replacement(
        ("torch_chunk_gated_delta_rule",),
        (("query", "key", "value", "g", "beta", "chunk_size", *_STATE),),
        chunk_gated_delta_rule,
        "gated_delta_net",
        "chunkwise",
    ),
    Replacement(
        ("torch_recurrent_gated_delta_rule",),
        (("query", "key", "value", "g", "beta", *_STATE),),
        recurrent_gated_delta_rule,
        "gated_delta_net",
        "step",
    ),
)
