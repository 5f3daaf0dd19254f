"""Additive layers with other gates: ABC's slots, the two-sided decay of DFW, GateLoop's complex decay."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from linrec import rules
from linrec.errors import ConfigError
from linrec.layers.heads import HeadsLayer
from linrec.layers.parts import split_heads, widened


class ABC(HeadsLayer):
    """Attention with bounded memory control (Peng et al. 2021, arXiv:2110.02488).

    ``num_slots`` slots with logits x W, held within ``clamp``; RMSNorm on each head and a swish gate.
    """

    rule = rules.abc

    def __init__(
        self, d_model: int, num_heads: int = 4, *, num_slots: int = 64, clamp: float = 32.0, **sizes: Any
    ):
        super().__init__(d_model, num_heads, **sizes)
        if num_slots < 1:
            raise ConfigError(f"ABC: num_slots must be at least 1, got {num_slots}")
        self.num_slots, self.clamp = num_slots, clamp
        self.slot_proj = nn.Linear(d_model, self.num_v_heads * num_slots, bias=False)

    def gates(self, x: Tensor) -> dict[str, Any]:
        """z ``[B, T, HV, M]``."""
        z = widened(self.slot_proj(x)).clamp(-self.clamp, self.clamp)
        return {"z": split_heads(z, self.num_v_heads)}


class DFW(HeadsLayer):
    """Decaying fast weights (Mao 2022, arXiv:2210.04243): decays sigmoid(x W) by key and by value channel.

    Like the attention that it was made to replace, it has neither norm nor gate; ``use_norm`` and ``use_gate`` add
    them.
    """

    rule = rules.dfw

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        use_gate: bool = False,
        use_norm: bool = False,
        **sizes: Any,
    ):
        super().__init__(d_model, num_heads, use_gate=use_gate, use_norm=use_norm, **sizes)
        self.key_decay = nn.Linear(d_model, self.num_v_heads * self.head_dim)
        self.value_decay = nn.Linear(d_model, self.num_v_heads * self.value_dim)

    def gates(self, x: Tensor) -> dict[str, Any]:
        """g ``[B, T, HV, K]``, h ``[B, T, HV, V]``."""
        g, h = (F.logsigmoid(widened(proj(x))) for proj in (self.key_decay, self.value_decay))
        return {
            "g": split_heads(g, self.num_v_heads),
            "h": split_heads(h, self.num_v_heads),
        }


class GateLoop(HeadsLayer):
    """GateLoop layer (Katsch 2023, arXiv:2311.01927).

    Decay sigmoid(x W) e^{i x W'} for every pair of key channels, amplitudes spread over (0, 1) at the start; RMSNorm
    on each head and a swish gate. Raises ConfigError for an odd ``head_dim``.
    """

    rule = rules.gateloop

    def __init__(self, d_model: int, num_heads: int = 4, **sizes: Any):
        super().__init__(d_model, num_heads, **sizes)
        if self.head_dim % 2:
            raise ConfigError(f"GateLoop: head_dim must be even, got {self.head_dim}")
        self.pairs = self.head_dim // 2
        self.decay_proj = nn.Linear(d_model, 2 * self.num_v_heads * self.pairs)
        with torch.no_grad():
            both = torch.stack(
                [torch.linspace(0.5, 5.0, self.pairs), torch.linspace(0, math.pi / 2, self.pairs)]
            )
            self.decay_proj.bias.copy_(repeat(both, "both J -> (both HV J)", HV=self.num_v_heads))

    def gates(self, x: Tensor) -> dict[str, Any]:
        """g and theta ``[B, T, HV, K / 2]``."""
        raw = widened(self.decay_proj(x))
        g, theta = (split_heads(z, self.num_v_heads) for z in raw.chunk(2, dim=-1))
        return {"g": F.logsigmoid(g), "theta": theta}
