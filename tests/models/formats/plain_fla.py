"""What the kernels of flash-linear-attention compute, in plain torch and token by token, for ``record_fla.py``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """o ``[B, T, H, V]`` of S <- e^g S, then S <- S + beta k (v - S'k)' (without beta S + k v'); o = S'q scale.

    q, k ``[B, T, HK, K]`` with HK dividing H, v ``[B, T, H, V]``, g ``[B, T, H, 1 or K]``, beta ``[B, T, H]``.
    """
    groups = v.shape[2] // q.shape[2]
    q, k = (x.repeat_interleave(groups, 2) for x in (q, k))
    S = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    outputs = []
    for t in range(v.shape[1]):
        S = g[:, t, :, :, None].exp() * S
        new = v[:, t]
        if beta is not None:
            new = beta[:, t, :, None] * (new - torch.einsum("bhkv,bhk->bhv", S, k[:, t]))
        S = S + k[:, t, :, :, None] * new[:, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return torch.stack(outputs, 1) * (k.shape[3] ** -0.5 if scale is None else scale)


def unit(x: Tensor) -> Tensor:
    """x ``[..., K]`` over its length, as the kernels do it."""
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def gated_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **how: Any) -> tuple[Tensor, None]:
    """chunk_gated_delta_rule; q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g and beta ``[B, T, HV]`` before gates."""
    assert how["use_qk_l2norm_in_kernel"] and how["use_gate_in_kernel"] and how["use_beta_sigmoid_in_kernel"]
    decay = -how["A_log"].exp() * F.softplus(g + how["dt_bias"])
    beta = beta.sigmoid() * (2 if how["allow_neg_eigval"] else 1)
    return recurrence(unit(q), unit(k), v, decay[..., None], beta), None


def kda(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **how: Any) -> tuple[Tensor, None]:
    """chunk_kda; q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g ``[B, T, HV, K]``, beta ``[B, T, HV]`` before gates."""
    assert how["use_qk_l2norm_in_kernel"] and how["use_gate_in_kernel"] and how["use_beta_sigmoid_in_kernel"]
    rate = how["A_log"].exp()[:, None]
    g = g + how["dt_bias"].view(g.shape[2:])
    bound = how["lower_bound"]
    decay = -rate * F.softplus(g) if bound is None else bound * (rate * g).sigmoid()
    beta = beta.sigmoid() * (2 if how["allow_neg_eigval"] else 1)
    return recurrence(unit(q), unit(k), v, decay, beta), None


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, **how: Any) -> tuple[Tensor, None]:
    """chunk_delta_rule; q, k ``[B, T, H, K]``, v ``[B, T, H, V]``, beta ``[B, T, H]``."""
    if how["use_qk_l2norm_in_kernel"]:
        q, k = unit(q), unit(k)
    return recurrence(q, k, v, torch.zeros_like(beta)[..., None], beta), None


def gla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, gk: Tensor | None = None, **how: Any
) -> Any:
    """chunk_gla; q, k, g (or gk) ``[B, T, H, K]``, v ``[B, T, H, V]``."""
    decay = g if gk is None else gk
    assert decay is not None
    return recurrence(q, k, v, decay), None


def retention(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> tuple[Tensor, None]:
    """chunk_retention; q, k ``[B, T, H, K]``, v ``[B, T, H, V]``."""
    heads = torch.arange(v.shape[2], dtype=torch.float64)
    g = torch.log1p(-torch.exp2(-5 - heads)).to(v.dtype)
    return recurrence(q, k, v, g[None, None, :, None].expand(*v.shape[:3], 1)), None


def rwkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor, **how: Any
) -> tuple[Tensor, None]:
    """fused_mul_recurrent_rwkv7, S <- e^w S - (kk a)(S'kk)' + k v', o = S'r; ``[B, T, H, K]``, v ``[B, T, H, V]``."""
    S = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    outputs = []
    for t in range(v.shape[1]):
        erased = torch.einsum("bhkv,bhk->bhv", S, kk[:, t])
        S = w[:, t, :, :, None].exp() * S - (kk * a)[:, t, :, :, None] * erased[:, :, None]
        S = S + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", S, r[:, t]))
    return torch.stack(outputs, 1) * how["scale"], None


def rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x ``[..., D]`` over its root mean square, times weight ``[D]``."""
    x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return x if weight is None else x * weight


def rms_norm(self: Any, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, **how: Any) -> Any:
    """RMSNorm.forward; x and residual ``[..., D]``."""
    x = x if residual is None else x + residual
    y = rms(x, self.weight, self.eps)
    return (y, x) if prenorm else y


def layer_norm(
    self: Any, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, **how: Any
) -> Any:
    """LayerNorm.forward; x and residual ``[..., D]``."""
    x = x if residual is None else x + residual
    y = F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
    return (y, x) if prenorm else y


def group_norm(self: Any, x: Tensor) -> Tensor:
    """GroupNorm.forward; x ``[..., D]``."""
    flat = F.group_norm(x.reshape(-1, x.shape[-1]), self.num_groups, self.weight, self.bias, self.eps)
    return flat.view(x.shape)


def gated_norm(self: Any, x: Tensor, g: Tensor) -> Tensor:
    """FusedRMSNormGated.forward; x and g ``[..., V]``."""
    return rms(x, self.weight, self.eps) * (g.sigmoid() if self.activation == "sigmoid" else F.silu(g))


def norm_linear(
    x: Tensor, weight: Tensor, bias: None, linear: Tensor, linear_bias: None, eps: float = 1e-5
) -> Tensor:
    """rms_norm_linear; x ``[..., D]``, weight ``[D]``, linear ``[E, D]``."""
    return F.linear(rms(x, weight, eps), linear)


def convolution(self: Any, x: Tensor, **how: Any) -> tuple[Tensor, None]:
    """ShortConvolution.forward; x ``[B, T, D]``."""
    return short_convolution(x, self.weight.squeeze(1), self.bias, self.activation)


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, **how: Any
) -> tuple[Tensor, None]:
    """causal_conv1d; x ``[B, T, D]``, weight ``[D, w]``, bias ``[D]``."""
    history = F.pad(x.mT, (weight.shape[1] - 1, 0))
    y = F.conv1d(history, weight[:, None], bias, groups=x.shape[2]).mT
    return (y if activation is None else F.silu(y)), None


def rotary(self: Any, q: Tensor, k: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
    """RotaryEmbedding.forward; q, k ``[B, T, H, K]``, channel i beside i + K/2."""
    half = self.dim // 2
    rate = self.base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(q.shape[1], dtype=torch.float64)[:, None, None] * rate
    cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
    turned = [
        torch.cat([x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1)
        for x in (q, k)
    ]
    return turned[0], turned[1]


def token_shift(x: Tensor, *given: Any, **how: Any) -> tuple[Tensor, None]:
    """The change to the token before, x ``[B, T, D]``."""
    return F.pad(x, (0, 0, 1, -1)) - x, None


def swiglu_linear(gate: Tensor, y: Tensor, weight: Tensor, bias: None) -> Tensor:
    """gate and y ``[..., E]``, weight ``[D, E]``."""
    return F.linear(F.silu(gate) * y, weight)


def corrected(o: Tensor, r: Tensor, k: Tensor, r_k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """gate_output_correction; o and g ``[B, T, D]``, r, k, v ``[B, T, H, K]``, r_k ``[H, K]``."""
    return (o + ((r * k * r_k).sum(-1, keepdim=True) * v).flatten(2)) * g


def addcmul(x: Tensor, change: Tensor, *shares: Tensor) -> tuple[Tensor, ...]:
    """fused_addcmul_rwkv7; x, change ``[B, T, D]``, shares ``[1, 1, D]``."""
    return tuple(x + change * share for share in shares)


class Wide:
    """torch, where the number type that is asked for by name is float64."""

    float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


# Where a kernel is called, by module and name, and what stands in its place.
PLAIN: dict[str, Any] = {
    "models.hgrn2.modeling_hgrn2.torch": Wide(),  # its bounds are a softmax in float32
    "layers.gated_deltanet.chunk_gated_delta_rule": gated_delta,
    "layers.gated_deltanet.fused_recurrent_gated_delta_rule": gated_delta,
    "layers.gated_deltanet.causal_conv1d": short_convolution,
    "layers.kda.chunk_kda": kda,
    "layers.kda.fused_recurrent_kda": kda,
    "layers.delta_net.chunk_delta_rule": delta,
    "layers.delta_net.fused_recurrent_delta_rule": delta,
    "layers.gla.chunk_gla": gla,
    "layers.gla.fused_recurrent_gla": gla,
    "layers.hgrn2.chunk_gla": gla,
    "layers.hgrn2.fused_recurrent_gla": gla,
    "layers.hgrn2.rms_norm_linear": norm_linear,
    "layers.hgrn2.swish": F.silu,
    "layers.multiscale_retention.chunk_retention": retention,
    "layers.multiscale_retention.fused_recurrent_retention": retention,
    "layers.rwkv7.fused_mul_recurrent_rwkv7": rwkv7,
    "layers.rwkv7.token_shift": token_shift,
    "layers.rwkv7.fused_addcmul_rwkv7": addcmul,
    "layers.rwkv7.l2_norm": unit,
    "layers.rwkv7.fused_k_rwkv7": lambda k, a, k_a: k * (1 + (a - 1) * k_a),
    "layers.rwkv7.gate_output_correction": corrected,
    "models.rwkv7.modeling_rwkv7.token_shift": token_shift,
    "modules.mlp.swiglu_linear": swiglu_linear,
    "modules.mlp.swiglu": lambda gate, y: F.silu(gate) * y,
    "modules.RMSNorm.forward": rms_norm,
    "modules.LayerNorm.forward": layer_norm,
    "modules.GroupNorm.forward": group_norm,
    "modules.FusedRMSNormGated.forward": gated_norm,
    "modules.ShortConvolution.forward": convolution,
    "modules.RotaryEmbedding.forward": rotary,
}
