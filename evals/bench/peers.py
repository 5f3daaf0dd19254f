"""Transformers' reference functions in this library's layout: time first, log-decays, heads not repeated.

They are taken out of their wrappers, which would look for kernels elsewhere.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from linrec.rule import ChannelDecay, Decay, Key, Query, Strength, UnitKey, Value


def reference(model: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of ``transformers.models.<model>``, unwrapped."""
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    return inspect.unwrap(getattr(module, name))


def gated_delta(q: Query, k: UnitKey, v: Value, g: Decay, beta: Strength) -> Tensor:
    """Qwen3-Next's chunked gated delta rule."""
    return reference("qwen3_next", "torch_chunk_gated_delta_rule")(q, k, v, g, beta)[0]


def gated_delta_step(
    q: Query, k: UnitKey, v: Value, g: Decay, beta: Strength, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Qwen3-Next's recurrent gated delta rule, from ``state [B, HV, K, V]``."""
    rule = reference("qwen3_next", "torch_recurrent_gated_delta_rule")
    return rule(q, k, v, g, beta, initial_state=state, output_final_state=True)


def kimi_delta(q: Query, k: UnitKey, v: Value, g: ChannelDecay, beta: Strength) -> Tensor:
    """Kimi Linear's chunked delta attention."""
    return reference("kimi_linear", "chunk_kimi_delta_attention")(q, k, v, g, beta)[0]


def mamba2(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Mamba-2's chunk scan, with the chunk length of its configuration.

    x ``[B, T, HV, P]``, dt ``[B, T, HV]``, A and D ``[HV]``, B and C ``[B, T, G, N]``.
    """
    return reference("mamba2", "mamba2_chunk_scan")(x, dt, A, B, C, chunk_size=256, D=D)


def mamba(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Mamba's selective scan: x and dt ``[B, T, D]``, A ``[D, N]``, B and C ``[B, T, N]``, D ``[D]``."""
    scan = reference("mamba", "mamba_selective_scan")
    return scan(*(t.mT for t in (x, dt)), A, *(t.mT for t in (B, C)), D).mT


def softmax(q: Query, k: Key, v: Value, *rest: Tensor) -> Tensor:
    """Causal softmax attention on the same q, k, v."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def plain_softmax(q: Query, k: Key, v: Value) -> Tensor:
    """The same from its definition, to check the fused one by."""
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
