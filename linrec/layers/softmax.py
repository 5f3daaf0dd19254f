"""Multi-head softmax attention with grouped queries and rotary embedding."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from linrec import rules
from linrec.engines.attention import KVCache
from linrec.errors import ConfigError
from linrec.layers.base import Layer, segment_count, token_positions
from linrec.layers.parts import GatedRMSNorm, rotate


class SoftmaxAttention(Layer):
    """Causal multi-head attention (Vaswani et al. 2017, arXiv:1706.03762).

    Grouped queries with ``num_kv_heads`` (Ainslie et al. 2023, arXiv:2305.13245), rotary embedding with
    ``rope_base`` (None: no positions), optional RMSNorm on q and k. The state is the key-value cache.
    """

    rule = rules.softmax_attention
    state_grows: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope_base: float | None = 10000.0,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.d_model, self.num_heads = d_model, num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_dim = head_dim or d_model // num_heads
        if self.head_dim < 1 or num_heads % self.num_kv_heads or (rope_base and self.head_dim % 2):
            raise ConfigError(
                f"SoftmaxAttention: num_heads={num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}, "
                f"and head_dim={self.head_dim} positive (even with rotary embedding)"
            )
        self.rope_base = rope_base
        self.widths = [h * self.head_dim for h in (num_heads, self.num_kv_heads, self.num_kv_heads)]
        self.qkv_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.q_norm = GatedRMSNorm(self.head_dim, norm_eps) if qk_norm else None
        self.k_norm = GatedRMSNorm(self.head_dim, norm_eps) if qk_norm else None
        self.o_proj = nn.Linear(self.widths[0], d_model, bias=False)

    def mix(self, x: Tensor, state: KVCache | None, cu_seqlens: Tensor | None) -> tuple[Tensor, KVCache]:
        """See :class:`Layer`."""
        q, k, v = (z.unflatten(-1, (-1, self.head_dim)) for z in self.qkv_proj(x).split(self.widths, dim=-1))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope_base:
            rows = segment_count(x, cu_seqlens)
            start = torch.zeros(rows, dtype=torch.int64, device=x.device) if state is None else state.length
            where = token_positions(x, start, cu_seqlens)
            q, k = rotate(q, where, self.rope_base), rotate(k, where, self.rope_base)
        o, state = self.rule(q, k, v, state=state, cu_seqlens=cu_seqlens)
        return self.o_proj(o.flatten(2)), state
