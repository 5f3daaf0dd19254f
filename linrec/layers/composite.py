"""Layers of the frame of :class:`HeadsLayer` around HGRN2, mLSTM, gated slots and MesaNet."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linrec import rules
from linrec.engines.numerics.forward_mode import silu
from linrec.errors import ConfigError
from linrec.layers.base import Layer
from linrec.layers.heads import HeadsLayer
from linrec.layers.parts import GatedRMSNorm, split_heads, widened


class LowerBounds(nn.Module):
    """Bounds of forget gates that rise with depth, learned for every channel and for all layers together.

    Those of layer n are the shares of layers 1 to n in a softmax over all layers, ``weight [layers, channels]``.
    """

    def __init__(self, layers: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, channels))

    def forward(self, depth: int) -> Tensor:
        """``[channels]``, at least float32."""
        return widened(self.weight).softmax(0)[1 : depth + 1].sum(0)


class HGRN2(HeadsLayer):
    """HGRN2 layer (Qin et al. 2024, arXiv:2404.07904).

    SiLU on q; forget gate f = sigmoid(x W) for every channel, raised to ``lower_bound`` + (1 - lower_bound) f; the
    key is 1 - f; RMSNorm on each head, or over all of them with ``norm_all_heads``, no gate. ``conv_activation`` puts
    SiLU behind the convolution, where there is one.

    With ``learned_bounds`` the bounds are :class:`LowerBounds` of ``num_layers`` layers, of which this is number
    ``depth``; the layers of a model share those of the first.
    """

    rule = rules.hgrn2
    _shared: tuple[LowerBounds, ...] = ()

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        lower_bound: float = 0.0,
        learned_bounds: bool = False,
        depth: int = 0,
        num_layers: int = 1,
        conv_activation: bool = True,
        norm_all_heads: bool = False,
        use_gate: bool = False,
        **sizes: Any,
    ):
        super().__init__(d_model, num_heads, use_gate=use_gate, **sizes)
        if not 0 <= lower_bound < 1 or (learned_bounds and lower_bound) or not 0 <= depth < num_layers:
            raise ConfigError(
                f"HGRN2: lower_bound must be in [0, 1), and 0 with learned_bounds, depth in [0, num_layers), got "
                f"{lower_bound}, learned_bounds={learned_bounds}, depth={depth}, num_layers={num_layers}"
            )
        if self.conv is not None:
            self.conv.activation = conv_activation
        if norm_all_heads and self.norm is not None:
            self.norm_all_heads = True
            self.norm = GatedRMSNorm(self.widths[2], self.norm.eps, self.gate_activation)
        self.lower_bound, self.depth = lower_bound, depth
        self.bounds = LowerBounds(num_layers, self.widths[1]) if learned_bounds else None

    def joins(self, first: Layer) -> None:
        """The bounds of the ``first`` layer in place of its own, beside the modules, which would save them twice."""
        if self.bounds is not None and isinstance(first, HGRN2) and first.bounds is not None:
            self.bounds = None
            self._shared = (first.bounds,)

    def floor(self, like: Tensor) -> Tensor | None:
        """Lower bounds of forget gates like ``[B, T, H, K]``: a number, or ``[H, K]``; None where there are none."""
        bounds = self._shared[0] if self._shared else self.bounds
        if bounds is not None and self.depth:
            return bounds(self.depth).to(like.dtype).view(like.shape[2:])
        return like.new_tensor(self.lower_bound) if self.lower_bound > 0 else None

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> dict[str, Any]:
        """The projection that is k elsewhere is the forget gate."""
        g = F.logsigmoid(widened(k))
        floor = self.floor(g)
        if floor is not None:
            g = torch.logaddexp(floor.log(), torch.log1p(-floor) + g).clamp(max=0)
        g = g.repeat_interleave(self.num_v_heads // self.num_heads, dim=2)  # B T H K -> B T (H each) K
        return {"q": silu(q), "v": v, "g": g}


class MLSTM(HeadsLayer):
    """mLSTM layer (Beck et al. 2024, arXiv:2405.04517).

    Input and forget gates from x with biases -10 and 3 .. 6, capped smoothly at +-``gate_cap``; RMSNorm on each head
    and a sigmoid gate.
    """

    rule = rules.mlstm
    gate_activation: str | None = "sigmoid"

    def __init__(self, d_model: int, num_heads: int = 4, *, gate_cap: float = 15.0, **sizes: Any):
        super().__init__(d_model, num_heads, **sizes)
        self.gate_cap = gate_cap
        self.i_proj, self.f_proj = (nn.Linear(d_model, self.num_v_heads) for _ in range(2))
        with torch.no_grad():
            self.i_proj.bias.fill_(-10.0)
            self.f_proj.bias.copy_(torch.linspace(3.0, 6.0, self.num_v_heads))

    def gates(self, x: Tensor) -> dict[str, Any]:
        """g and i ``[B, T, HV]``."""
        i, f = (self.gate_cap * (widened(p(x)) / self.gate_cap).tanh() for p in (self.i_proj, self.f_proj))
        return {"g": F.logsigmoid(f), "i": i}


class GatedSlotAttention(HeadsLayer):
    """Gated slot attention layer (Zhang et al. 2024, arXiv:2409.07146).

    SiLU on q, k, v; ``num_slots`` slots with log-decay logsigmoid(x W) / ``gate_temperature``; SiLU and RMSNorm on the
    output.
    """

    rule = rules.gated_slot_attention
    activation: bool = True

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        num_slots: int = 64,
        gate_temperature: float = 8.0,
        use_gate: bool = False,
        **sizes: Any,
    ):
        super().__init__(d_model, num_heads, use_gate=use_gate, **sizes)
        self.num_slots, self.gate_temperature = num_slots, gate_temperature
        self.f_proj = nn.Linear(d_model, self.num_v_heads * num_slots, bias=False)

    def gates(self, x: Tensor) -> dict[str, Any]:
        """g ``[B, T, HV, M]``."""
        raw = split_heads(widened(self.f_proj(x)), self.num_v_heads)
        return {"g": F.logsigmoid(raw) / self.gate_temperature}

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        return super()._output(silu(o), x)


class MesaNet(HeadsLayer):
    """MesaNet layer (von Oswald et al. 2025, arXiv:2506.05233).

    Short convolution of width 4 with SiLU on q, k, v; L2-normalised q and k; g = logsigmoid(x W + b), beta =
    sigmoid(x W + b), lam = softplus(parameter) + ``ridge`` for every key channel; RMSNorm on each head and a gate.
    ``iterations`` of conjugate gradients in training and prefill, a direct solve at each decoded token.
    """

    rule = rules.mesa_net
    activation: bool = True
    unit_keys: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        conv_size: int = 4,
        iterations: int = 30,
        ridge: float = 0.25,
        **sizes: Any,
    ):
        super().__init__(d_model, num_heads, conv_size=conv_size, **sizes)
        if ridge < 0:
            raise ConfigError(f"MesaNet: ridge must be at least 0, got {ridge}")
        self.iterations, self.ridge = iterations, ridge
        self.a_proj, self.b_proj = (nn.Linear(d_model, self.num_v_heads) for _ in range(2))
        with torch.no_grad():
            self.a_proj.bias.copy_(torch.linspace(3.0, 6.0, self.num_v_heads))
        self.lam = nn.Parameter(torch.zeros(self.num_v_heads, self.head_dim))

    def gates(self, x: Tensor) -> dict[str, Any]:
        """g and beta ``[B, T, HV]``, lam ``[HV, K]``."""
        return {
            "g": F.logsigmoid(widened(self.a_proj(x))),
            "beta": widened(self.b_proj(x)).sigmoid(),
            "lam": F.softplus(widened(self.lam)) + self.ridge,
            "iterations": self.iterations,
        }
