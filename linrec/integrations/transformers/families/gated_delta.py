"""The gated delta rule of Qwen3-Next, Qwen3.5, OLMo-Hybrid and their kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linrec import rules
from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.layout import apply
from linrec.integrations.transformers.replacement import Replacement
from linrec.integrations.transformers.states import moved_on


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / √(|x|² + eps), of the last axis of x ``[..., K]``."""
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
    """query, key ``[B, T, H, K]``, value ``[B, T, HV, V]``, g and beta ``[B, T, HV]``, initial_state
    ``[B, HV, K, V]``."""
    tensors = {"q": query, "k": key, "v": value, "g": g, "beta": beta}
    o, state = delta_rule(
        rules.gated_delta_net, mixing, tensors, initial_state, use_qk_l2norm_in_kernel, output_final_state
    )
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
    """The same for one token: query, key ``[B, 1, H, K]``, value ``[B, 1, HV, V]``, g and beta ``[B, 1, HV]``,
    initial_state ``[B, HV, K, V]``."""
    return chunk_gated_delta_rule(
        mixing, query, key, value, g, beta, 64, initial_state, output_final_state, use_qk_l2norm_in_kernel
    )


def delta_rule(
    rule: Callable[..., tuple[Tensor, Tensor]],
    mixing: Mixing,
    tensors: dict[str, Tensor],
    state: Tensor | None,
    unit_norm: bool,
    kept: bool,
) -> tuple[Tensor, Tensor]:
    """A delta rule on q, k, v, g and beta, from ``state [B, HV, K, V]``, under the call's layout; the output has the
    dtype of q.

    One token moves the state of a cache, which the mixer would only copy back, on in place.
    """
    dtype = tensors["q"].dtype
    tensors = {name: x.to(torch.promote_types(dtype, torch.float32)) for name, x in tensors.items()}
    if unit_norm:
        tensors["q"], tensors["k"] = unit(tensors["q"]), unit(tensors["k"])
    if tensors["q"].is_cuda:  # products of its tensor cores, as the kernels that transformers would use there
        tensors |= {name: tensors[name].to(dtype) for name in ("q", "k", "v")}
    given_away = kept and state is not None and mixing.cache is not None and not torch.is_grad_enabled()
    if state is not None and given_away and mixing.layout is None and tensors["q"].shape[1] == 1:
        return moved_on(state, lambda before: rule(**tensors, state=before)).to(dtype), state
    o, state = apply(rule, tensors, mixing.layout, state)
    return o.to(dtype), state


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
