"""Additive layers: linear attention, RetNet, Lightning attention, GLA."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from linrec import rules
from linrec.errors import ConfigError
from linrec.layers.delta import low_rank
from linrec.layers.heads import HeadsLayer
from linrec.layers.parts import ConstantDecay, split_heads, widened


class LinearAttention(HeadsLayer):
    """Linear attention layer (Katharopoulos et al. 2020, arXiv:2006.16236): elu(x) + 1 features, normalised.

    As in the paper there is neither output norm nor gate; ``use_norm`` and ``use_gate`` add them.
    """

    rule = rules.linear_attention

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        feature_map: str = "elu+1",
        normalize: bool = True,
        eps: float = 1e-6,
        use_gate: bool = False,
        use_norm: bool = False,
        **sizes: Any,
    ):
        super().__init__(d_model, num_heads, use_gate=use_gate, use_norm=use_norm, **sizes)
        self.options = {"feature_map": feature_map, "normalize": normalize, "eps": eps}

    def gates(self, x: Tensor) -> dict[str, Any]:
        """The feature map and the denominator's floor."""
        return self.options


class RetNet(HeadsLayer):
    """Multi-scale retention (Sun et al. 2023, arXiv:2307.08621).

    Rotary embedding on q and k, constant decay 1 - 2^(-5 - h), values twice as wide as keys, RMSNorm on each
    head and a swish gate.
    """

    rule = rules.retnet
    rotary: ClassVar[bool] = True

    def __init__(self, d_model: int, num_heads: int = 4, *, expand_v: float = 2.0, **sizes: Any):
        super().__init__(d_model, num_heads, expand_v=expand_v, **sizes)
        self.decay = ConstantDecay(rules.retnet_decay(self.num_v_heads))

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """g ``[HV]``."""
        return {"g": self.decay()}


class Lightning(HeadsLayer):
    """Lightning attention as in MiniMax-01 (Qin et al. 2024, arXiv:2401.04658; arXiv:2501.08313).

    SiLU on q, k, v; constant slopes, which shrink with depth if ``layer`` and ``layers`` are given; one RMSNorm
    over all heads; sigmoid gate.
    """

    rule = rules.lightning
    activation: bool = True
    gate_activation: str | None = "sigmoid"
    norm_all_heads: bool = True

    def __init__(self, d_model: int, num_heads: int = 4, *, layer: int = 0, layers: int = 1, **sizes: Any):
        super().__init__(d_model, num_heads, **sizes)
        self.decay = ConstantDecay(rules.lightning_decay(self.num_v_heads, layer, layers))

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """g ``[HV]``."""
        return {"g": self.decay()}


class GLA(HeadsLayer):
    """Gated linear attention layer (Yang et al. 2023, arXiv:2312.06635).

    Keys half as wide as the model; log-decay logsigmoid(x W1 W2 + b) / 16 for every key channel through 16
    channels, at least ``decay_floor`` where that is given; RMSNorm on each head and a swish gate.
    """

    rule = rules.gla

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        head_dim: int | None = None,
        expand_v: float = 2.0,
        gate_rank: int = 16,
        gate_temperature: float = 16.0,
        decay_floor: float | None = None,
        **sizes: Any,
    ):
        width = max(d_model // (2 * num_heads), 1) if head_dim is None else head_dim
        super().__init__(d_model, num_heads, head_dim=width, expand_v=expand_v, **sizes)
        if decay_floor is not None and not decay_floor < 0:
            raise ConfigError(f"GLA: decay_floor must be below zero, got {decay_floor}")
        self.gate_temperature, self.decay_floor = gate_temperature, decay_floor
        self.f_proj: nn.Module = low_rank(d_model, gate_rank, self.num_v_heads * self.head_dim, bias=True)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """g ``[B, T, HV, K]``."""
        raw = widened(self.f_proj(x))
        g = F.logsigmoid(raw) / self.gate_temperature
        g = g if self.decay_floor is None else g.clamp(min=self.decay_floor)
        return {"g": split_heads(g, self.num_v_heads)}
