"""The sLSTM layer of xLSTM."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from linrec import rules
from linrec.engines.numerics.forward_mode import layer_norm
from linrec.errors import ConfigError
from linrec.layers.base import Layer
from linrec.layers.parts import ShortConvolution, merge_heads, split_heads
from linrec.rules.slstm import SLSTMState


class SLSTMLayerState(NamedTuple):
    """conv ``[B, w - 1, d_model]`` (None without convolution), memory, the rule's state."""

    conv: Tensor | None
    memory: SLSTMState | None


class SLSTM(Layer):
    """sLSTM layer (Beck et al. 2024, arXiv:2405.04517).

    The input and forget gates see the tokens through a convolution with SiLU, the cell input and the output gate
    directly; gate maps and feedback are block-diagonal, one block a head; a LayerNorm on each head. There is no
    output projection. The feedback starts at zero, the forget bias as a power law over the channels of a head.
    It runs token by token, in training too: see the rule. Raises ConfigError for sizes that do not fit.
    """

    rule = rules.slstm

    def __init__(self, d_model: int, num_heads: int = 4, *, conv_size: int = 4, norm_eps: float = 1e-5):
        super().__init__()
        if num_heads < 1 or d_model < 1 or d_model % num_heads:
            raise ConfigError(f"SLSTM: d_model={d_model} must divide into num_heads={num_heads}")
        self.d_model, self.num_heads, self.norm_eps = d_model, num_heads, norm_eps
        width = d_model // num_heads
        self.conv = ShortConvolution(d_model, conv_size, bias=True) if conv_size else None
        std = math.sqrt(2 / (5 * width))
        self.weight = nn.Parameter(std * torch.randn(4, num_heads, width, width))
        self.feedback = nn.Parameter(torch.zeros(4, num_heads, width, width))
        bias = torch.zeros(4, num_heads, width)
        bias[2] = 5 - 12 * (torch.arange(width) / max(width - 1, 1)) ** 0.3
        self.bias = nn.Parameter(bias)
        self.norm_weight = nn.Parameter(torch.ones(num_heads, width))

    def mix(
        self, x: Tensor, state: SLSTMLayerState | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, SLSTMLayerState]:
        """See :class:`Layer`."""
        state = state or SLSTMLayerState(None, None)
        smooth, conv = (x, None) if self.conv is None else self.conv(x, state.conv, cu_seqlens)
        direct, smooth = (split_heads(s.to(x.dtype), self.num_heads) for s in (x, smooth))
        z, i, f, o = (
            torch.einsum("BTHI,HJI->BTHJ", source, weight.to(x.dtype)) + bias.to(x.dtype)
            for source, weight, bias in zip(
                (direct, smooth, smooth, direct), self.weight, self.bias, strict=True
            )
        )
        dtype = z.dtype
        z, i, f, o = (gate.to(dtype) for gate in (z, i, f, o))
        h, memory = self.rule(z, i, f, o, *self.feedback, state=state.memory, cu_seqlens=cu_seqlens)
        h = layer_norm(h, self.norm_eps) * self.norm_weight
        return merge_heads(h).to(x.dtype), SLSTMLayerState(conv, memory)
