"""Layers around the gated delta layer: Comba, DeltaProduct, and log-linear attention with and without delta."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linrec import rules
from linrec.errors import ConfigError
from linrec.layers.delta import DeltaNet, GatedDeltaNet
from linrec.layers.heads import HeadsLayer
from linrec.layers.parts import DecayRate, split_heads, unit_norm, widened


class Comba(GatedDeltaNet):
    """Comba layer (Hu et al. 2025, arXiv:2506.02475).

    The gated delta layer with the feedback d = sigmoid(parameter) and the output correction D, one of each a head.
    """

    rule = rules.comba

    def __init__(self, d_model: int, num_heads: int = 4, **options: Any):
        super().__init__(d_model, num_heads, **options)
        self.d = nn.Parameter(torch.ones(self.num_v_heads))
        self.D = nn.Parameter(torch.ones(self.num_v_heads))

    def gates(self, x: Tensor) -> dict[str, Any]:
        """g and beta ``[B, T, HV]``, d and D ``[HV]``."""
        return {**super().gates(x), "d": widened(self.d).sigmoid(), "D": self.D}


class DeltaProduct(GatedDeltaNet):
    """Gated DeltaProduct layer (Siems et al. 2025, arXiv:2502.10297).

    The gated delta layer with ``num_steps`` keys, values and strengths a token; beta reaches 2 by default, so that
    products of reflections are within reach. Without ``use_forget_gate`` nothing decays: DeltaProduct proper.
    """

    rule = rules.delta_product
    unit_keys = False  # normalised below, where the steps are apart

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        num_steps: int = 2,
        conv_size: int = 4,
        allow_neg_eigval: bool = True,
        use_forget_gate: bool = True,
        **options: Any,
    ):
        if num_steps < 1:
            raise ConfigError(f"DeltaProduct: num_steps must be at least 1, got {num_steps}")
        super().__init__(
            d_model, num_heads, conv_size=conv_size, allow_neg_eigval=allow_neg_eigval, **options
        )
        self.num_steps, self.use_forget_gate = num_steps, use_forget_gate
        if not use_forget_gate:
            del self.a_proj, self.decay
        queries, keys, values = self.widths
        self._make_projections([queries, keys * num_steps, values * num_steps], conv_size)
        self.b_proj = nn.Linear(d_model, self.num_v_heads * num_steps, bias=False)

    def gates(self, x: Tensor) -> dict[str, Any]:
        """g and beta, the strengths of all steps in one dimension."""
        if self.use_forget_gate:
            return super().gates(x)
        g = widened(x.new_zeros(*x.shape[:2], self.num_v_heads))
        return {"g": g, **DeltaNet.gates(self, x)}

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> dict[str, Any]:
        """k ``[B, T, H, R, K]``, v ``[B, T, HV, R, V]``, beta ``[B, T, HV, R]``."""
        k = k.unflatten(3, (self.num_steps, -1))  # B T H (R K) -> B T H R K
        v = v.unflatten(3, (self.num_steps, -1))  # B T HV (R V) -> B T HV R V
        gates = self.gates(x)
        gates["beta"] = split_heads(gates["beta"], self.num_v_heads)
        return {"q": unit_norm(q), "k": unit_norm(k), "v": v, **gates}


class LogLinearAttention(HeadsLayer):
    """Log-linear attention layer (Guo et al. 2025, arXiv:2506.04761) over scalar-gated linear attention.

    Short convolution of width 4 with SiLU on q, k, v; log-decay as in Mamba-2; level weights softplus(x W + 1) for
    ``num_levels`` levels, enough to tell 2^(num_levels - 1) tokens apart; RMSNorm on each head and a gate.
    """

    rule = rules.log_linear_attention
    activation = True

    def __init__(
        self, d_model: int, num_heads: int = 4, *, num_levels: int = 16, conv_size: int = 4, **sizes: Any
    ):
        super().__init__(d_model, num_heads, conv_size=conv_size, **sizes)
        self.a_proj = nn.Linear(d_model, self.num_v_heads, bias=False)
        self.decay = DecayRate(self.num_v_heads)
        self.levels = LevelWeights(d_model, self.num_v_heads, num_levels)

    def gates(self, x: Tensor) -> dict[str, Any]:
        """g ``[B, T, HV]``, lam ``[B, T, HV, L]``."""
        return {"g": self.decay(self.a_proj(x)[..., None])[..., 0], "lam": self.levels(x)}


class LogLinearGatedDelta(GatedDeltaNet):
    """Log-linear gated DeltaNet layer (Guo et al. 2025, arXiv:2506.04761): the gated delta layer with level weights."""

    rule = rules.log_linear_gated_delta

    def __init__(self, d_model: int, num_heads: int = 4, *, num_levels: int = 16, **options: Any):
        super().__init__(d_model, num_heads, **options)
        self.levels = LevelWeights(d_model, self.num_v_heads, num_levels)

    def gates(self, x: Tensor) -> dict[str, Any]:
        """g and beta ``[B, T, HV]``, lam ``[B, T, HV, L]``."""
        return {**super().gates(x), "lam": self.levels(x)}


class LevelWeights(nn.Module):
    """softplus(x W + 1): the weight of each level at each token."""

    def __init__(self, d_model: int, heads: int, levels: int):
        super().__init__()
        if levels < 2:
            raise ConfigError(f"log-linear attention: num_levels must be at least 2, got {levels}")
        self.heads = heads
        self.proj = nn.Linear(d_model, heads * levels)
        with torch.no_grad():
            self.proj.bias.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """x ``[B, T, d_model]`` -> ``[B, T, heads, levels]``."""
        return split_heads(F.softplus(widened(self.proj(x))), self.heads)
