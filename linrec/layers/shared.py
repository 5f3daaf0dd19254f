"""Attention layers with a small cache: latent (MLA), shared keys and values (S1 to S3), factored (TPA)."""

from __future__ import annotations

from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from linrec import rules
from linrec.errors import ConfigError
from linrec.layers.base import Layer
from linrec.layers.parts import GatedRMSNorm, merge_heads, rotate, split_heads
from linrec.layers.projection import affine_map, project
from linrec.layers.softmax import cache_positions, projection
from linrec.state import State


class MultiHeadLatentAttention(Layer):
    """Multi-head latent attention, MLA (DeepSeek-V2 2024, arXiv:2405.04434), with a full-rank query.

    Heads of ``head_dim`` channels without position and ``rope_dim`` with (default half of that), values of
    ``value_dim`` (default head_dim), all keys and values from a latent of ``latent_dim`` (default 4 head_dim), normed
    with ``latent_norm``. What is cached is the normed latent and one rotated key. Decoding is absorbed.
    """

    rule = rules.latent_attention
    state_grows: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        head_dim: int | None = None,
        rope_dim: int | None = None,
        value_dim: int | None = None,
        latent_dim: int | None = None,
        latent_norm: bool = True,
        rope_base: float = 10000.0,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.d_model, self.num_heads, self.rope_base = d_model, num_heads, rope_base
        self.head_dim = d_model // num_heads if head_dim is None else head_dim
        self.rope_dim = max(self.head_dim // 4 * 2, 2) if rope_dim is None else rope_dim
        self.value_dim = self.head_dim if value_dim is None else value_dim
        self.latent_dim = 4 * self.head_dim if latent_dim is None else latent_dim
        if min(self.head_dim, self.value_dim, self.latent_dim, self.rope_dim) < 1 or self.rope_dim % 2:
            raise ConfigError(
                f"MultiHeadLatentAttention: head_dim={self.head_dim}, value_dim={self.value_dim} and "
                f"latent_dim={self.latent_dim} must be positive, rope_dim={self.rope_dim} too, and even"
            )
        self.q_proj = nn.Linear(d_model, num_heads * (self.head_dim + self.rope_dim), bias=False)
        self.down_proj = nn.Linear(d_model, self.latent_dim + self.rope_dim, bias=False)
        self.norm = GatedRMSNorm(self.latent_dim, norm_eps) if latent_norm else None
        self.up_proj = nn.Linear(self.latent_dim, num_heads * (self.head_dim + self.value_dim), bias=False)
        self.o_proj = nn.Linear(num_heads * self.value_dim, d_model, bias=False)

    def mix(self, x: Tensor, state: State, cu_seqlens: Tensor | None) -> tuple[Tensor, State]:
        """See :class:`Layer`."""
        q = split_heads(project(self.q_proj, x), self.num_heads)
        q, q_rope = q.split([self.head_dim, self.rope_dim], dim=-1)
        latent, k_rope = project(self.down_proj, x).split([self.latent_dim, self.rope_dim], dim=-1)
        if self.norm is not None:
            latent = self.norm(latent)
        where = cache_positions(x, state, cu_seqlens)
        q_rope = rotate(q_rope, where, self.rope_base)
        k_rope = rotate(k_rope[:, :, None], where, self.rope_base)[:, :, 0]
        w_k, w_v, offset = self._maps(latent)
        o, state = self.rule(q, q_rope, latent, k_rope, w_k, w_v, state=state, cu_seqlens=cu_seqlens)
        o = merge_heads(o)
        return project(self.o_proj, o if offset is None else o + offset.to(o.dtype)), state

    def _maps(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """w_k ``[H, C, K]``, w_v ``[H, C, V]``, and what is added to the values ``[H V]``, where something is.

        The same vector added to all keys would change nothing: softmax takes no notice.
        """
        maps, offset = affine_map(self.up_proj, self.latent_dim, latent)
        parts = [self.head_dim, self.value_dim]
        maps = maps.unflatten(1, (self.num_heads, -1)).transpose(0, 1)  # C (H KV) -> H C KV
        w_k, w_v = maps.split(parts, dim=-1)
        if offset is not None:
            of_values = rearrange(offset, "(H KV) -> H KV", H=self.num_heads)[:, self.head_dim :]
            offset = rearrange(of_values, "H V -> (H V)")
        return w_k, w_v, offset


class SharedKVAttention(Layer):
    """Grouped attention that caches one vector for key and value (Su's S1, S2 and S3).

    Heads of ``head_dim`` channels, of which ``rope_dim`` are rotated (default a quarter) and the others, c, shared:

    =====  =====================  =============  ===================================================
    S1     K = [c, RoPE(k)]       V = [c, v]
    S2     K = V = [c, RoPE(k)]                  the output's rotary part is rotated back (VO-RoPE)
    S3     K = [c, RoPE(k)]       V = c
    =====  =====================  =============  ===================================================

    ``qo_rank``: query and output projections through so many channels.
    """

    rule = rules.shared_kv_attention
    state_grows: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        variant: str = "S2",
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope_dim: int | None = None,
        rope_base: float = 10000.0,
        qo_rank: int | None = None,
    ):
        super().__init__()
        self.d_model, self.num_heads, self.variant, self.rope_base = d_model, num_heads, variant, rope_base
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        width = d_model // num_heads if head_dim is None else head_dim
        self.rope_dim = max(width // 8 * 2, 2) if rope_dim is None else rope_dim
        self.shared_dim = width - self.rope_dim
        if variant not in ("S1", "S2", "S3"):
            raise ConfigError(f"SharedKVAttention: variant must be S1, S2 or S3, got {variant!r}")
        sizes = min(self.shared_dim, self.rope_dim, self.num_kv_heads)
        if sizes < 1 or self.rope_dim % 2 or num_heads % self.num_kv_heads:
            raise ConfigError(
                f"SharedKVAttention: head_dim={width} must exceed a positive, even rope_dim={self.rope_dim}, and "
                f"num_heads={num_heads} be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        self.parts = [self.shared_dim, self.rope_dim] + ([self.rope_dim] if variant == "S1" else [])
        self.q_proj = projection(d_model, num_heads * width, qo_rank)
        self.kv_proj = nn.Linear(d_model, self.num_kv_heads * sum(self.parts), bias=False)
        read = self.shared_dim if variant == "S3" else width
        self.o_proj = projection(num_heads * read, d_model, qo_rank)

    def mix(self, x: Tensor, state: State, cu_seqlens: Tensor | None) -> tuple[Tensor, State]:
        """See :class:`Layer`."""
        where = cache_positions(x, state, cu_seqlens)
        q = split_heads(project(self.q_proj, x), self.num_heads)
        kv = split_heads(project(self.kv_proj, x), self.num_kv_heads)
        q, q_rope = q.split(self.parts[:2], dim=-1)
        c, k_rope, *own = kv.split(self.parts, dim=-1)
        q_rope, k_rope = (rotate(z, where, self.rope_base) for z in (q_rope, k_rope))
        if self.variant == "S2":
            q, c = torch.cat([q, q_rope], dim=-1), torch.cat([c, k_rope], dim=-1)
            o, state = self.rule(q, c, state=state, cu_seqlens=cu_seqlens)
            o, turned = o.split(self.parts, dim=-1)
            o = torch.cat([o, rotate(turned, -where, self.rope_base)], dim=-1)
        else:
            o, state = self.rule(q, c, q_rope, k_rope, *own, state=state, cu_seqlens=cu_seqlens)
        return project(self.o_proj, merge_heads(o)), state


class TensorProductAttention(Layer):
    """Tensor product attention, TPA (Zhang et al. 2025, arXiv:2501.06425).

    Keys and values are means of ``kv_rank`` outer products, queries of ``q_rank`` (None: a plain projection); the
    rotation acts on the factors, so that rotated factors are cached.
    """

    rule = rules.tensor_product_attention
    state_grows: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        head_dim: int | None = None,
        q_rank: int | None = 6,
        kv_rank: int = 2,
        rope_base: float | None = 10000.0,
    ):
        super().__init__()
        self.d_model, self.num_heads, self.rope_base = d_model, num_heads, rope_base
        self.head_dim = d_model // num_heads if head_dim is None else head_dim
        ranks = (kv_rank, 1 if q_rank is None else q_rank)
        if min(self.head_dim, *ranks) < 1 or (rope_base is not None and self.head_dim % 2):
            raise ConfigError(
                f"TensorProductAttention: head_dim={self.head_dim}, kv_rank={kv_rank} and q_rank={q_rank} must be "
                "positive (q_rank or None), head_dim even with rotary embedding"
            )
        self.q_rank = q_rank
        factors = num_heads + self.head_dim
        self.q_proj = nn.Linear(
            d_model, num_heads * self.head_dim if q_rank is None else q_rank * factors, bias=False
        )
        self.k_proj = nn.Linear(d_model, kv_rank * factors, bias=False)
        self.v_proj = nn.Linear(d_model, kv_rank * factors, bias=False)
        self.o_proj = nn.Linear(num_heads * self.head_dim, d_model, bias=False)

    def mix(self, x: Tensor, state: State, cu_seqlens: Tensor | None) -> tuple[Tensor, State]:
        """See :class:`Layer`."""
        where = cache_positions(x, state, cu_seqlens)
        a_k, b_k = self._factors(project(self.k_proj, x), where)
        a_v, b_v = self._factors(project(self.v_proj, x), None)
        if self.q_rank is not None:
            a_q, b_q = self._factors(project(self.q_proj, x), where)
            q = a_q.mT @ b_q / self.q_rank
        else:
            q = split_heads(project(self.q_proj, x), self.num_heads)
            q = self._turn(q, where)
        o, state = self.rule(q, a_k, b_k, a_v, b_v, state=state, cu_seqlens=cu_seqlens)
        return project(self.o_proj, merge_heads(o)), state

    def _factors(self, z: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
        z = z.unflatten(2, (-1, self.num_heads + self.head_dim))  # B T (R HK) -> B T R HK
        a, b = z.split([self.num_heads, self.head_dim], dim=-1)
        return a, b if where is None else self._turn(b, where)

    def _turn(self, z: Tensor, where: Tensor) -> Tensor:
        return rotate(z, where, self.rope_base) if self.rope_base is not None else z
