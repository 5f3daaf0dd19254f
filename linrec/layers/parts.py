"""Building blocks around a rule: short convolution, normalisation, rotation, gates."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from linrec.engines.convolution import causal_convolution
from linrec.engines.numerics.forward_mode import layer_norm
from linrec.engines.numerics.norm import gated_rms_norm, rms_norm
from linrec.errors import RangeError, ShapeError


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``B T (H K) -> B T H K`` for H = ``heads``, and so for heads of any kind and groups of any width.

    As :func:`merge_heads` one call of torch: it is done for a single token before einops has read a pattern, and a
    layer's step needs five.
    """
    return torch.unflatten(x, 2, (heads, -1))


def merge_heads(x: Tensor) -> Tensor:
    """``B T H K -> B T (H K)``, the inverse of :func:`split_heads`."""
    return torch.flatten(x, 2)


class RMSNorm(nn.Module):
    """w x / sqrt(mean of x^2 + eps), as :class:`torch.nn.RMSNorm`; faster for one token on a CPU."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """x ``[..., width]``."""
        return rms_norm(x, self.weight, self.eps)


class OffsetRMSNorm(nn.Module):
    """(1 + w) x / sqrt(mean of x^2 + eps) with w first zero, rounded once at the end, as Gemma has it."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """x ``[..., width]``."""
        return rms_norm(widened(x), 1 + widened(self.weight), self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """w (x - mean) / sqrt(variance + eps) + b, as :class:`torch.nn.LayerNorm`, whose forward mode is not exact."""

    def __init__(self, width: int, eps: float = 1e-5, bias: bool = True):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x ``[..., width]``."""
        y = layer_norm(x, self.eps) * self.weight
        return y if self.bias is None else y + self.bias


class ShortConvolution(nn.Module):
    """Causal depthwise convolution with a streaming state, followed by SiLU.

    y_t = silu(bias + sum_{i < w} weight_i * x_{t - w + 1 + i}); weight ``[channels, w]``; the state
    ``[B, w - 1, channels]`` holds the last w - 1 inputs. Raises ShapeError for a state of another shape.
    """

    def __init__(self, channels: int, width: int = 4, bias: bool = False, activation: bool = True):
        super().__init__()
        self.channels, self.width, self.activation = channels, width, activation
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(
        self, x: Tensor, state: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x ``[B, T, channels]``, state ``[B, w - 1, channels]`` -> (y like x, next state)."""
        rows = x.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
        shape = (rows, self.width - 1, self.channels)
        if state is None:
            state = x.new_zeros(shape)
        elif state.shape != shape:
            raise ShapeError(f"short convolution: state must be {list(shape)}, got {list(state.shape)}")
        return causal_convolution(x, self.weight, self.bias, state, cu_seqlens, self.activation)


class GatedRMSNorm(nn.Module):
    """RMSNorm times an activated gate: ``rms(x) w act(z)``, or ``rms(x act(z)) w`` with ``gate_first``.

    The mean square is taken over the last dimension, or over each of ``groups`` equal parts of it.
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        activation: str | None = "silu",
        gate_first: bool = False,
        groups: int = 1,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.activation, self.gate_first, self.groups = eps, activation, gate_first, groups

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """x and gate ``[..., width]``; without a gate a plain RMSNorm."""
        act = "silu" if self.activation == "silu" else "sigmoid"
        return gated_rms_norm(x, self.weight, gate, self.eps, act, self.gate_first, self.groups)


def widened(x: Tensor) -> Tensor:
    """x ``[...]`` in float32 at least: gates and norms lose too much in half precision."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x if x.dtype is wide else x.to(wide)  # a call that does nothing takes time too


def unit_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(|x|^2 + eps), over the last dimension of x ``[..., K]``; slightly shorter than one because of eps."""
    wide = widened(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864) of x ``[B, T, H, K]`` at ``positions`` ``[B, T]``.

    Channel i is paired with channel i + K/2, angle = position * base^(-2 i / K).
    """
    half = x.shape[-1] // 2
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    frequency = base ** (-torch.arange(half, device=x.device, dtype=wide) / half)
    angle = (positions[..., None].to(wide) * frequency)[:, :, None]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def time_step_bias(width: int, low: float = 1e-3, high: float = 0.1) -> Tensor:
    """Bias b such that softplus(b) is log-uniform in [low, high]: Mamba's initial time steps."""
    dt = torch.exp(torch.empty(width).uniform_(math.log(low), math.log(high)))
    return dt + torch.log(-torch.expm1(-dt))


class ConstantDecay(nn.Module):
    """Log-decays that are constants, ``[heads]`` in float64 whatever dtype the model is given.

    Kept as bits, because a model's change of dtype rounds every buffer of numbers; and in no checkpoint.
    """

    bits: Tensor

    def __init__(self, g: Tensor):
        super().__init__()
        self.register_buffer("bits", g.double().view(torch.int64), persistent=False)

    def forward(self) -> Tensor:
        """``[heads]``."""
        return self.bits.view(torch.float64)


class DecayRate(nn.Module):
    """Mamba-2's log-decay: g = -e^{A_log} softplus(x + bias); A_log per head, bias per head or channel.

    With a ``floor`` g = floor * sigmoid(e^{A_log} (x + bias)), which nothing takes below it. Raises RangeError for a
    floor that is not below zero.
    """

    def __init__(self, heads: int, channels: int = 1, floor: float | None = None):
        super().__init__()
        if floor is not None and not floor < 0:
            raise RangeError(f"floor of the log-decay: expected a number below zero, got {floor}")
        self.floor = floor
        self.A_log = nn.Parameter(torch.empty(heads, 1).uniform_(1, 16).log())
        self.bias = nn.Parameter(rearrange(time_step_bias(heads * channels), "(HV K) -> HV K", HV=heads))

    def forward(self, x: Tensor) -> Tensor:
        """x ``[B, T, heads, channels]`` -> log-decay of that shape, at least float32."""
        wide = widened(x)
        rate, wide = self.A_log.to(wide.dtype).exp(), wide + self.bias.to(wide.dtype)
        return -rate * F.softplus(wide) if self.floor is None else self.floor * (rate * wide).sigmoid()


class TimeStep(DecayRate):
    """Mamba-2's step and rate apart: dt = softplus(x + bias), A = -e^{A_log}; their product is the log-decay.

    dt is held within ``limit`` (low, high) where there is one. Raises RangeError for limits that are none.
    """

    def __init__(self, heads: int, limit: tuple[float, float] | None = None):
        super().__init__(heads)
        if limit is not None and not (len(limit) == 2 and 0 <= limit[0] <= limit[1]):
            raise RangeError(f"time_step_limit: expected (low, high) with 0 <= low <= high, got {limit}")
        self.limit = limit

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """x ``[B, T, heads]`` -> (dt of that shape, at least float32; A ``[heads]``)."""
        dt = F.softplus(widened(x) + self.bias.flatten())
        return dt if self.limit is None else dt.clamp(*self.limit), -self.A_log.flatten().exp()
