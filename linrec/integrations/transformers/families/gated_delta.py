"""The gated delta rule of Qwen3-Next, Qwen3.5, OLMo-Hybrid and their kin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from linrec import rules
from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.layout import apply
from linrec.integrations.transformers.replacement import Replacement
from linrec.integrations.transformers.states import moved_on
from linrec.layers.parts import unit_norm

Rule = Callable[..., tuple[Tensor, Tensor]]


def chunkwise(
    rule: Rule,
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
    """query, key ``[B, T, H, K]``, value ``[B, T, HV, V]``, g ``[B, T, HV]`` or for each channel ``[B, T, H, K]``, beta
    ``[B, T, HV]``, initial_state ``[B, HV, K, V]``."""
    tensors = {"q": query, "k": key, "v": value, "g": g, "beta": beta}
    o, state = delta_rule(rule, mixing, tensors, initial_state, use_qk_l2norm_in_kernel, output_final_state)
    return o, state if output_final_state else None


def one_token(
    rule: Rule,
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
    """The same with T = 1, without a chunk size: query, key ``[B, 1, H, K]``, value ``[B, 1, HV, V]``, g and beta
    ``[B, 1, HV]``, initial_state ``[B, HV, K, V]``."""
    return chunkwise(
        rule,
        mixing,
        query,
        key,
        value,
        g,
        beta,
        64,
        initial_state,
        output_final_state,
        use_qk_l2norm_in_kernel,
    )


def delta_rule(
    rule: Rule,
    mixing: Mixing,
    tensors: dict[str, Tensor],
    state: Tensor | None,
    normalised: bool,
    kept: bool,
) -> tuple[Tensor, Tensor]:
    """A delta rule on q, k, v, g and beta, from ``state [B, HV, K, V]``, under the call's layout; the output has the
    dtype of q.

    One token moves the state of a cache, which the mixer would only copy back, on in place.
    """
    dtype = tensors["q"].dtype
    tensors = {name: x.to(torch.promote_types(dtype, torch.float32)) for name, x in tensors.items()}
    if normalised:
        tensors["q"], tensors["k"] = unit_norm(tensors["q"]), unit_norm(tensors["k"])
    if tensors["q"].is_cuda:  # products of its tensor cores, as the kernels that transformers would use there
        tensors |= {name: tensors[name].to(dtype) for name in ("q", "k", "v")}
    given_away = kept and state is not None and mixing.cache is not None and not torch.is_grad_enabled()
    if state is not None and given_away and mixing.layout is None and tensors["q"].shape[1] == 1:
        return moved_on(state, lambda before: rule(**tensors, state=before)).to(dtype), state
    o, state = apply(rule, tensors, mixing.layout, state)
    return o.to(dtype), state


_TENSORS = ("query", "key", "value", "g", "beta")
_STATE = ("initial_state", "output_final_state", "use_qk_l2norm_in_kernel")


def delta_replacements(chunk: str, recurrent: str, rule: Rule, name: str) -> tuple[Replacement, ...]:
    """Those of a delta rule's two functions in modelling files."""
    together, alone = ((*_TENSORS, "chunk_size", *_STATE),), ((*_TENSORS, *_STATE),)
    return (
        Replacement((chunk,), together, partial(chunkwise, rule), name, "chunkwise"),
        Replacement((recurrent,), alone, partial(one_token, rule), name, "step"),
    )


REPLACEMENTS = delta_replacements(
    "torch_chunk_gated_delta_rule",
    "torch_recurrent_gated_delta_rule",
    rules.gated_delta_net,
    "gated_delta_net",
)
