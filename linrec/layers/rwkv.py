"""The time mixing of RWKV-5, RWKV-6 and RWKV-7: token shift, low-rank gates, a rule, a norm on each head."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from linrec import rules
from linrec.engines.numerics.forward_mode import layer_norm, silu
from linrec.errors import ConfigError
from linrec.layers.base import Layer, segment_count
from linrec.layers.delta import low_rank
from linrec.layers.parts import merge_heads, split_heads, unit_norm, widened
from linrec.layers.projection import project
from linrec.layers.shift import token_shift


class RWKVState(NamedTuple):
    """last ``[B, d_model]``, the last token; memory ``[B, HV, K, V]``."""

    last: Tensor
    memory: Tensor | None


class HeadNorm(nn.Module):
    """Layer norm of each head with a weight and a bias of its own."""

    def __init__(self, heads: int, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x ``[B, T, heads, width]``."""
        return layer_norm(x, self.eps) * self.weight + self.bias


class RWKVLayer(Layer):
    """What the generations share; ``signals`` names the token-shifted inputs."""

    signals: tuple[str, ...]

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        norm_eps: float | None = None,
        chunk_size: int | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        if num_heads < 1 or d_model < 1 or d_model % num_heads:
            raise ConfigError(
                f"{type(self).__name__}: d_model={d_model} must divide into num_heads={num_heads}"
            )
        self.d_model, self.num_heads, self.head_dim = d_model, num_heads, d_model // num_heads
        self.how: dict[str, Any] = {"chunk_size": chunk_size, "backend": backend}
        self.mu = nn.Parameter(torch.rand(len(self.signals), d_model))
        self.r_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        self.norm = HeadNorm(num_heads, self.head_dim, norm_eps or 1e-5 * self.head_dim)

    def heads(self, x: Tensor) -> Tensor:
        """``[B, T, d_model] -> [B, T, H, K]``."""
        return split_heads(x, self.num_heads)

    def start(self, x: Tensor, state: RWKVState | None, cu_seqlens: Tensor | None) -> RWKVState:
        """The state, or the empty one for x ``[B, T, d_model]``."""
        return state or RWKVState(x.new_zeros(segment_count(x, cu_seqlens), self.d_model), None)


class BonusLayer(RWKVLayer):
    """What RWKV-5 and RWKV-6 share: a bonus u for the current token, layer norm on each head, a SiLU gate."""

    def __init__(self, d_model: int, num_heads: int = 4, **options: object):
        super().__init__(d_model, num_heads, **options)  # type: ignore[arg-type]
        self.u = nn.Parameter(rearrange(torch.linspace(-0.5, 0.5, d_model), "(H K) -> H K", H=num_heads))
        self.g_proj = nn.Linear(d_model, d_model, bias=False)

    def shares(self, x: Tensor, change: Tensor) -> Tensor:
        """How much of the change since the last token each signal takes: ``[signals, D]`` or ``[B, T, signals, D]``.

        x and change ``[B, T, D]``.
        """
        return self.mu.to(x.dtype)

    def log_decay(self, signals: dict[str, Tensor]) -> Tensor:
        """g ``[H, K]`` or ``[B, T, H, K]``."""
        raise NotImplementedError

    def mix(self, x: Tensor, state: RWKVState | None, cu_seqlens: Tensor | None) -> tuple[Tensor, RWKVState]:
        """See :class:`Layer`."""
        state = self.start(x, state, cu_seqlens)
        before, last = token_shift(x, state.last, cu_seqlens)
        change = before - x
        mixed = (x[:, :, None] + change[:, :, None] * self.shares(x, change)).to(x.dtype)
        signals = dict(zip(self.signals, mixed.unbind(2), strict=True))
        r, k, v = (
            self.heads(project(p, signals[n]))
            for n, p in (("r", self.r_proj), ("k", self.k_proj), ("v", self.v_proj))
        )
        g = self.log_decay(signals)
        o, memory = self.rule(r, k, v, g, self.u, state=state.memory, cu_seqlens=cu_seqlens, **self.how)
        y = merge_heads(self.norm(o)) * silu(project(self.g_proj, signals["g"]))
        return project(self.o_proj, y.to(x.dtype)), RWKVState(last, memory)


class RWKV5(BonusLayer):
    """RWKV-5 time mixing, Eagle (Peng et al. 2024, arXiv:2404.05892).

    Token shift by learned shares for k, v, r and gate; log-decay -e^w for every channel, the same at all tokens; bonus
    u; layer norm on each head, SiLU gate.
    """

    rule = rules.rwkv5
    signals = ("k", "v", "r", "g")

    def __init__(self, d_model: int, num_heads: int = 4, **options: object):
        super().__init__(d_model, num_heads, **options)
        self.w = nn.Parameter(rearrange(torch.linspace(-6, -1, d_model), "(H K) -> H K", H=num_heads))

    def log_decay(self, signals: dict[str, Tensor]) -> Tensor:
        """-e^w ``[H, K]``."""
        return -widened(self.w).exp()


class RWKV6(BonusLayer):
    """RWKV-6 time mixing (Peng et al. 2024, arXiv:2404.05892).

    Data-dependent token shift for r, w, k, v and gate; log-decay -e^{w0 + tanh(x W1) W2} for every channel; bonus u;
    layer norm on each head, SiLU gate.
    """

    rule = rules.rwkv6
    signals = ("w", "k", "v", "r", "g")

    def __init__(
        self, d_model: int, num_heads: int = 4, *, gate_rank: int = 64, mix_rank: int = 32, **options: object
    ):
        super().__init__(d_model, num_heads, **options)
        n = len(self.signals)
        self.mu_x = nn.Parameter(torch.rand(d_model))
        self.mix_down = nn.Linear(d_model, n * mix_rank, bias=False)
        self.mix_up = nn.Parameter(torch.empty(n, mix_rank, d_model).uniform_(-0.01, 0.01))
        self.w_proj = _tanh_low_rank(d_model, gate_rank)
        self.w_bias = nn.Parameter(torch.linspace(-6, -1, d_model))

    def shares(self, x: Tensor, change: Tensor) -> Tensor:
        """``[B, T, signals, D]``: mu, and what the token adds to it; x and change ``[B, T, D]``."""
        down = split_heads(self.mix_down(x + change * self.mu_x).tanh(), len(self.signals))
        return self.mu + torch.einsum("BTMR,MRD->BTMD", down, self.mix_up.to(down.dtype))  # M signals

    def log_decay(self, signals: dict[str, Tensor]) -> Tensor:
        """-e^{w0 + tanh(x W1) W2} ``[B, T, H, K]``."""
        return -self.heads(widened(project(self.w_proj, signals["w"])) + self.w_bias).exp()


class RWKV7(RWKVLayer):
    """RWKV-7 time mixing (Peng et al. 2025, arXiv:2503.14456).

    Token shift by learned shares; log-decay -e^{-1/2} sigmoid(w), in-context learning rate eta = sigmoid(a), removal
    key kappa = unit(k * xi), replacement key k (1 + (eta - 1) k_a); layer norm on each head, then the bonus
    (r . (rho * k)) v, then the gate. ``decay_rank``, ``rate_rank`` and ``gate_rank`` are the channels through which
    w, a and the gate are projected, by default all ``gate_rank``.

    With a ``value_rank`` values are mixed with those of the first layer: that of ``depth`` 0 hands on its values beside
    its output, ``[B, T, 2 d_model]``, and the others, with v_first behind their input, take
    v + sigmoid(x W + b) (v_first - v).
    """

    rule = rules.rwkv7
    signals = ("r", "w", "k", "v", "a", "g")

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        gate_rank: int = 64,
        decay_rank: int | None = None,
        rate_rank: int | None = None,
        value_rank: int | None = None,
        depth: int = 0,
        key_eps: float = 1e-6,
        **options: object,
    ):
        super().__init__(d_model, num_heads, **options)  # type: ignore[arg-type]
        self.w_proj = _tanh_low_rank(d_model, decay_rank or gate_rank)
        self.w_bias = nn.Parameter(torch.linspace(-6, 1, d_model))
        self.a_proj = low_rank(d_model, rate_rank or gate_rank, d_model)
        self.a_bias = nn.Parameter(torch.zeros(d_model))
        self.g_down = nn.Linear(d_model, gate_rank, bias=False)
        self.g_up = nn.Linear(gate_rank, d_model, bias=False)
        self.xi = nn.Parameter(torch.full((d_model,), 0.85))
        self.k_a = nn.Parameter(torch.ones(d_model))
        self.rho = nn.Parameter(torch.full((num_heads, self.head_dim), 0.1))
        self.key_eps, self.hands_on = key_eps, value_rank is not None
        if value_rank is not None and depth:
            self.beside = d_model
            self.v_mix = low_rank(d_model, value_rank, d_model)
            self.v_bias = nn.Parameter(torch.full((d_model,), 0.73))

    def mix(self, x: Tensor, state: RWKVState | None, cu_seqlens: Tensor | None) -> tuple[Tensor, RWKVState]:
        """See :class:`Layer`."""
        x, first = x[..., : self.d_model], x[..., self.d_model :]
        state = self.start(x, state, cu_seqlens)
        before, last = token_shift(x, state.last, cu_seqlens)
        xr, xw, xk, xv, xa, xg = (x[:, :, None] + (before - x)[:, :, None] * self.mu.to(x.dtype)).unbind(2)
        r, k, v = project(self.r_proj, xr), project(self.k_proj, xk), project(self.v_proj, xv)
        if self.beside:
            share = (self.v_mix(xv) + self.v_bias.to(v.dtype)).sigmoid()
            v = v + share * (first - v)
        handed = first if self.beside else v
        g = -math.exp(-0.5) * (widened(project(self.w_proj, xw)) + self.w_bias).sigmoid()
        eta = (widened(self.a_proj(xa)) + self.a_bias).sigmoid()
        kappa = unit_norm(self.heads(k * self.xi.to(k.dtype)), self.key_eps)
        k = (k * (1 + (eta - 1) * self.k_a)).to(k.dtype)
        r, k, v, g, eta = (self.heads(z) for z in (r, k, v, g, eta))
        o, memory = self.rule(r, k, v, g, kappa, eta, state=state.memory, cu_seqlens=cu_seqlens, **self.how)
        bonus = (r * k * self.rho.to(k.dtype)).sum(-1, keepdim=True) * v
        y = merge_heads(self.norm(o) + bonus) * self.g_up(self.g_down(xg).sigmoid())
        y = project(self.o_proj, y.to(x.dtype))
        return (torch.cat([y, handed], dim=-1) if self.hands_on else y), RWKVState(last, memory)


def _tanh_low_rank(width: int, rank: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Tanh(), nn.Linear(rank, width, bias=False))
