"""The frame that most linear-attention layers share; a layer adds its gates."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from linrec.engines.numerics.forward_mode import silu
from linrec.errors import ConfigError
from linrec.layers.base import Layer, segment_count, token_positions, tokens_seen
from linrec.layers.parts import GatedRMSNorm, ShortConvolution, merge_heads, rotate, split_heads, unit_norm
from linrec.layers.projection import project
from linrec.state import State


class HeadsState(NamedTuple):
    """conv ``[B, w - 1, channels]`` (None without convolution), memory (the rule's state), seen ``[B]`` tokens."""

    conv: Tensor | None
    memory: State
    seen: Tensor


class HeadsLayer(Layer):
    """q, k, v projections, short convolution, q/k treatment, a rule, output norm and gate, output projection.

    ``num_heads`` heads of q and k of width ``head_dim`` (default d_model / num_heads), ``num_v_heads`` heads
    of v (default num_heads, or a multiple of it) of width ``head_dim * expand_v``.
    The class attributes are the mechanism's conventions, the arguments its sizes; ``gate_activation``, silu or sigmoid,
    is the mechanism's own unless it is given. Raises ConfigError for sizes that do not fit.
    """

    activation: bool = False  # SiLU on q, k, v
    unit_keys: ClassVar[bool] = False  # L2-normalise q and k
    rotary: ClassVar[bool] = False
    gate_activation: str | None = "silu"
    norm_all_heads: bool = False  # one RMSNorm over all heads instead of one a head

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        head_dim: int | None = None,
        num_v_heads: int | None = None,
        expand_v: float = 1.0,
        conv_size: int = 0,
        use_gate: bool = True,
        use_norm: bool = True,
        norm_eps: float = 1e-5,
        gate_activation: str | None = None,
        chunk_size: int | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        if gate_activation not in (None, "silu", "sigmoid"):
            raise ConfigError(f"gate_activation: expected silu or sigmoid, got {gate_activation!r}")
        self.gate_activation = gate_activation or self.gate_activation
        self.d_model, self.num_heads = d_model, num_heads
        self.head_dim = d_model // num_heads if head_dim is None else head_dim
        self.num_v_heads = num_heads if num_v_heads is None else num_v_heads
        self.value_dim = int(round(self.head_dim * expand_v, 6))  # 8 / 6 of 6 channels are 8
        self._check_sizes()
        self.how: dict[str, Any] = {"chunk_size": chunk_size, "backend": backend}
        keys, values = self.num_heads * self.head_dim, self.num_v_heads * self.value_dim
        self._make_projections([keys, keys, values], conv_size)
        self.gate_proj = self.make_gate(values) if use_gate else None
        normed = values if self.norm_all_heads else self.value_dim
        self.norm = GatedRMSNorm(normed, norm_eps, self.gate_activation) if use_norm else None
        self.o_proj = nn.Linear(values, d_model, bias=False)

    def _make_projections(self, widths: list[int], conv_size: int) -> None:
        self.widths = widths
        self.qkv_proj = nn.Linear(self.d_model, sum(widths), bias=False)
        self.conv = ShortConvolution(sum(widths), conv_size) if conv_size else None

    def _check_sizes(self) -> None:
        who = type(self).__name__
        if self.d_model < 1 or self.num_heads < 1 or self.head_dim < 1 or self.value_dim < 1:
            raise ConfigError(
                f"{who}: d_model={self.d_model}, num_heads={self.num_heads} leave head_dim={self.head_dim}, "
                f"value width {self.value_dim}; all must be positive"
            )
        if self.num_v_heads < 1 or self.num_v_heads % self.num_heads:
            raise ConfigError(
                f"{who}: num_v_heads={self.num_v_heads} must be a multiple of num_heads={self.num_heads}"
            )
        if self.rotary and self.head_dim % 2:
            raise ConfigError(f"{who}: rotary embedding needs an even head_dim, got {self.head_dim}")

    def make_gate(self, width: int) -> nn.Module:
        """The projection of the output gate."""
        return nn.Linear(self.d_model, width, bias=False)

    def activated(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k ``[B, T, H K]`` and v ``[B, T, HV V]`` where one SiLU for all three, or none, is not what they get."""
        return q, k, v

    def normed(self, x: Tensor) -> Tensor:
        """x ``[B, T, H, K]``, which is q or k, as ``unit_keys`` has it."""
        return unit_norm(x)

    def gates(self, x: Tensor) -> dict[str, Any]:
        """The rule's arguments besides q, k and v, from the layer's input x ``[B, T, d_model]``."""
        return {}

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> dict[str, Any]:
        """All arguments of the rule by name; q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, x ``[B, T, d_model]``."""
        return {"q": q, "k": k, "v": v, **self.gates(x)}

    def mix(
        self, x: Tensor, state: HeadsState | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, HeadsState]:
        """See :class:`Layer`."""
        if state is None:
            empty = torch.zeros(segment_count(x, cu_seqlens), dtype=torch.int64, device=x.device)
            state = HeadsState(None, None, empty)
        q, k, v, conv = self._project(x, state, cu_seqlens)
        inputs = self.inputs(q, k, v, x)
        o, memory = self.rule(**inputs, state=state.memory, cu_seqlens=cu_seqlens, **self.how)
        return self._output(o, x), HeadsState(conv, memory, tokens_seen(state.seen, x, cu_seqlens))

    def _project(
        self, x: Tensor, state: HeadsState, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        qkv, conv = project(self.qkv_proj, x), None
        if self.conv is not None:
            qkv, conv = self.conv(qkv, state.conv, cu_seqlens)
        elif self.activation:
            qkv = silu(qkv)
        q, k, v = self.activated(*qkv.split(self.widths, dim=-1))
        q = split_heads(q, self.num_heads)
        k = split_heads(k, self.num_heads)
        v = split_heads(v, self.num_v_heads)
        if self.unit_keys:
            q, k = self.normed(q), self.normed(k)
        if self.rotary:
            where = token_positions(x, state.seen, cu_seqlens)
            q, k = rotate(q, where), rotate(k, where)
        return q, k, v, conv

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        gate = None if self.gate_proj is None else project(self.gate_proj, x)
        if self.norm_all_heads:
            o = merge_heads(o)
        elif gate is not None:
            gate = split_heads(gate, self.num_v_heads)
        if self.norm is not None:
            o = self.norm(o, gate)
        elif gate is not None:
            o = o * gate.sigmoid()
        return project(self.o_proj, o if self.norm_all_heads else merge_heads(o))
