"""The delta family: DeltaNet, Gated DeltaNet, Kimi Delta Attention."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from linrec import rules
from linrec.engines.numerics.forward_mode import silu
from linrec.errors import ConfigError
from linrec.layers.heads import HeadsLayer
from linrec.layers.parts import DecayRate, split_heads, unit_norm, widened
from linrec.rule import Rule
from linrec.rules.feature_maps import PLAIN

KEY_ACTIVATIONS = {"silu": silu, **{name: PLAIN[name] for name in ("relu", "elu+1", "identity")}}


class DeltaNet(HeadsLayer):
    """DeltaNet layer (Yang et al. 2024, arXiv:2406.06484).

    Short convolution of width 4 with SiLU on q, k, v; L2-normalised q and k; beta = sigmoid(x W), doubled
    with ``allow_neg_eigval`` (Grazzi et al. 2024, arXiv:2411.12537); RMSNorm on each head; no gate by default.

    ``key_activation`` is what q and k get in place of SiLU (relu, elu+1, identity), ``key_norm`` l2 or l1: x / |x|_1;
    without ``use_beta`` beta is one. Raises ConfigError for other names.
    """

    rule: ClassVar[Rule] = rules.delta_net
    activation: bool = True
    unit_keys: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        conv_size: int = 4,
        use_gate: bool = False,
        allow_neg_eigval: bool = False,
        use_beta: bool = True,
        key_activation: str = "silu",
        key_norm: str = "l2",
        **sizes: Any,
    ):
        if key_activation not in KEY_ACTIVATIONS or key_norm not in ("l2", "l1"):
            raise ConfigError(
                f"{type(self).__name__}: expected key_activation from {', '.join(KEY_ACTIVATIONS)} and key_norm l2 "
                f"or l1, got {key_activation!r} and {key_norm!r}"
            )
        super().__init__(d_model, num_heads, conv_size=conv_size, use_gate=use_gate, **sizes)
        self.key_activation, self.key_norm = key_activation, key_norm
        self.activation = key_activation == "silu"
        if self.conv is not None:
            self.conv.activation = self.activation
        self.beta_range = 2.0 if allow_neg_eigval else 1.0
        self.b_proj = nn.Linear(d_model, self.num_v_heads, bias=False) if use_beta else None

    def activated(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k ``[B, T, H K]``, v ``[B, T, HV V]``."""
        if self.activation:
            return q, k, v
        act = KEY_ACTIVATIONS[self.key_activation]
        return act(q), act(k), silu(v)

    def normed(self, x: Tensor) -> Tensor:
        """x ``[B, T, H, K]``, which is q or k, over its length."""
        return unit_norm(x) if self.key_norm == "l2" else F.normalize(x, p=1, dim=-1, eps=1e-6)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """beta ``[B, T, HV]``."""
        if self.b_proj is None:
            return {"beta": widened(x.new_full((*x.shape[:2], self.num_v_heads), self.beta_range))}
        return {"beta": widened(self.b_proj(x)).sigmoid() * self.beta_range}


class GatedDeltaNet(DeltaNet):
    """Gated DeltaNet layer (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464).

    DeltaNet's layer with log-decay g = -e^{A_log} softplus(x W + bias) per value head, and an output gate:
    RMSNorm(o) * silu(gate).
    """

    rule: ClassVar[Rule] = rules.gated_delta_net

    def __init__(self, d_model: int, num_heads: int = 4, *, use_gate: bool = True, **options: Any):
        super().__init__(d_model, num_heads, use_gate=use_gate, **options)
        self.a_proj = nn.Linear(d_model, self.num_v_heads, bias=False)
        self.decay = DecayRate(self.num_v_heads)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """g and beta ``[B, T, HV]``."""
        return {"g": self.decay(self.a_proj(x)[..., None])[..., 0], **super().gates(x)}


class KimiDeltaAttention(DeltaNet):
    """Kimi Delta Attention layer (Kimi Team 2025, arXiv:2510.26692).

    The gated delta layer with a log-decay for every key channel, from a projection through ``head_dim``
    channels, and an output gate of the same low rank: RMSNorm(o) * sigmoid(gate). With ``decay_floor``, a number
    below zero, the log-decay is decay_floor * sigmoid(e^{A_log} (x W + bias)).
    """

    rule: ClassVar[Rule] = rules.kimi_delta_attention
    gate_activation: str | None = "sigmoid"

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        use_gate: bool = True,
        decay_floor: float | None = None,
        **options: Any,
    ):
        super().__init__(d_model, num_heads, use_gate=use_gate, **options)
        self.f_proj = low_rank(d_model, self.value_dim, self.num_v_heads * self.head_dim)
        self.decay = DecayRate(self.num_v_heads, self.head_dim, decay_floor)

    def make_gate(self, width: int) -> nn.Module:
        """A low-rank gate with a bias."""
        return low_rank(self.d_model, self.value_dim, width, bias=True)

    def log_decay(self, x: Tensor) -> Tensor:
        """x ``[B, T, d_model]`` -> g ``[B, T, HV, K]``."""
        return self.decay(split_heads(self.f_proj(x), self.num_v_heads))

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """g ``[B, T, HV, K]``, beta ``[B, T, HV]``."""
        return {"g": self.log_decay(x), **super().gates(x)}


def low_rank(d_in: int, rank: int, d_out: int, bias: bool = False) -> nn.Sequential:
    """Two projections with ``rank`` channels between them; ConfigError for less than one."""
    if rank < 1:
        raise ConfigError(f"expected at least one channel between two projections, got a rank of {rank}")
    return nn.Sequential(nn.Linear(d_in, rank, bias=False), nn.Linear(rank, d_out, bias=bias))
