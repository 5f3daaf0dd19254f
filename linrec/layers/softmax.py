"""Multi-head softmax attention with grouped queries and rotary embedding."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from linrec import rules
from linrec.errors import ConfigError
from linrec.layers.base import Layer, segment_count, token_positions
from linrec.layers.delta import low_rank
from linrec.layers.parts import GatedRMSNorm, merge_heads, rotate, split_heads
from linrec.layers.projection import project
from linrec.rule import Rule
from linrec.state import State


class SoftmaxAttention(Layer):
    """Causal multi-head attention (Vaswani et al. 2017, arXiv:1706.03762).

    Grouped queries with ``num_kv_heads`` (Ainslie et al. 2023, arXiv:2305.13245; 1 is multi-query attention),
    rotary embedding with ``rope_base`` (None: no positions) on the first ``rope_dim`` channels of each head
    (None: all), optional RMSNorm on q and k, optional sliding ``window``, query and output projections through
    ``qo_rank`` channels if it is given. The state is the key-value cache.
    """

    rule: ClassVar[Rule] = rules.softmax_attention
    state_grows: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope_base: float | None = 10000.0,
        rope_dim: int | None = None,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        window: int | None = None,
        qo_rank: int | None = None,
    ):
        super().__init__()
        self.d_model, self.num_heads = d_model, num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.head_dim = d_model // num_heads if head_dim is None else head_dim
        self.rope_base, self.window = rope_base, window
        self.rope_dim = self.head_dim if rope_dim is None else rope_dim
        self._check_sizes()
        self._check_options(rope_dim)
        self.widths = [h * self.head_dim for h in (num_heads, self.num_kv_heads, self.num_kv_heads)]
        self.q_proj = None if qo_rank is None else low_rank(d_model, qo_rank, self.widths[0])
        self.qkv_proj = nn.Linear(
            d_model, sum(self.widths if qo_rank is None else self.widths[1:]), bias=False
        )
        self.q_norm = GatedRMSNorm(self.head_dim, norm_eps) if qk_norm else None
        self.k_norm = GatedRMSNorm(self.head_dim, norm_eps) if qk_norm else None
        self.o_proj = projection(self.widths[0], d_model, qo_rank)

    def _check_sizes(self) -> None:
        who = type(self).__name__
        if self.head_dim < 1 or self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{who}: num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}, "
                f"and head_dim={self.head_dim} positive"
            )
        if self.rope_base is not None and (self.rope_dim % 2 or not 0 < self.rope_dim <= self.head_dim):
            raise ConfigError(
                f"{who}: rotary embedding needs an even rope_dim up to head_dim={self.head_dim}, got {self.rope_dim}"
            )
        if self.window is not None and self.window < 1:
            raise ConfigError(f"{who}: window must be None or positive, got {self.window}")

    def _check_options(self, rope_dim: int | None) -> None:
        who = type(self).__name__
        if self.window is not None and "window" not in self.rule.__signature__.parameters:
            raise ConfigError(f"{who}: {self.rule.name} has no window; expected None, got {self.window}")
        if rope_dim is not None and self.rope_base is None:
            raise ConfigError(
                f"{who}: rope_dim={rope_dim} rotates nothing without a rope_base, which is None"
            )

    def gates(self, x: Tensor) -> dict[str, Any]:
        """The rule's arguments besides q, k and v, from the layer's input x ``[B, T, d_model]``."""
        return {} if self.window is None else {"window": self.window}

    def mix(self, x: Tensor, state: State, cu_seqlens: Tensor | None) -> tuple[Tensor, State]:
        """See :class:`Layer`."""
        q, k, v = self.heads(x, state, cu_seqlens)
        o, state = self.rule(q, k, v, **self.gates(x), state=state, cu_seqlens=cu_seqlens)
        return project(self.o_proj, merge_heads(o)), state

    def heads(self, x: Tensor, cache: State, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q ``[B, T, HQ, K]``, k and v ``[B, T, H, K]`` of x ``[B, T, d_model]``, normed and rotated."""
        projected = project(self.qkv_proj, x)
        if self.q_proj is not None:
            projected = torch.cat([project(self.q_proj, x), projected], dim=-1)
        q, k, v = projected.split(self.widths, dim=-1)
        q = split_heads(q, self.num_heads)
        k = split_heads(k, self.num_kv_heads)
        v = split_heads(v, self.num_kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope_base is not None:
            where = cache_positions(x, cache, cu_seqlens)
            q, k = (rotate_first(z, where, self.rope_base, self.rope_dim) for z in (q, k))
        return q, k, v


def cache_positions(x: Tensor, cache: State, cu_seqlens: Tensor | None) -> Tensor:
    """Position of each token of x ``[B, T, ...]``, ``[B, T]``, behind the tokens that the cache has seen."""
    if cache is None:
        start = torch.zeros(segment_count(x, cu_seqlens), dtype=torch.int64, device=x.device)
    else:
        start = cache.length
    return token_positions(x, start, cu_seqlens)


def rotate_first(x: Tensor, positions: Tensor, base: float, width: int) -> Tensor:
    """x ``[B, T, H, K]`` with the first ``width`` channels of each head turned, by positions ``[B, T]``."""
    if width == x.shape[-1]:
        return rotate(x, positions, base)
    return torch.cat([rotate(x[..., :width], positions, base), x[..., width:]], dim=-1)


def projection(d_in: int, d_out: int, rank: int | None) -> nn.Module:
    """A projection, through ``rank`` channels if it is given."""
    return nn.Linear(d_in, d_out, bias=False) if rank is None else low_rank(d_in, rank, d_out)
