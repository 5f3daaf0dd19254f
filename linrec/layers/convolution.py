"""Canon and token shift as layers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from linrec import rules
from linrec.errors import ConfigError
from linrec.layers.base import Layer


class ConvolutionState(NamedTuple):
    """inputs ``[B, w - 1, d_model]``: the last ones."""

    inputs: Tensor


class ConvolutionLayer(Layer):
    """What Canon and token shift share; ``num_heads`` is taken for the pattern's sake and means nothing."""

    def __init__(self, d_model: int, num_heads: int = 1):
        super().__init__()
        self.d_model = d_model

    def arguments(self) -> dict[str, Any]:
        """The rule's parameters."""
        raise NotImplementedError

    def mix(
        self, x: Tensor, state: ConvolutionState | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, ConvolutionState]:
        """See :class:`Layer`."""
        before = None if state is None else state.inputs
        y, inputs = self.rule(x, **self.arguments(), state=before, cu_seqlens=cu_seqlens)
        return y, ConvolutionState(inputs)


class Canon(ConvolutionLayer):
    """Canon layer (Allen-Zhu 2025, arXiv:2512.17351): x plus its short causal convolution of width 4."""

    rule = rules.canon

    def __init__(self, d_model: int, num_heads: int = 1, *, conv_size: int = 4, bias: bool = False):
        super().__init__(d_model, num_heads)
        if conv_size < 2:
            raise ConfigError(f"Canon: conv_size must be at least 2, got {conv_size}")
        bound = 1 / math.sqrt(conv_size)
        self.weight = nn.Parameter(torch.empty(d_model, conv_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None

    def arguments(self) -> dict[str, Any]:
        """weight ``[d_model, w]`` and bias."""
        return {"weight": self.weight, "bias": self.bias}


class TokenShift(ConvolutionLayer):
    """Token shift (Peng et al. 2023, arXiv:2305.13048) with a learned share of the token before, at first one half."""

    rule = rules.token_shift

    def __init__(self, d_model: int, num_heads: int = 1):
        super().__init__(d_model, num_heads)
        self.mu = nn.Parameter(torch.full((d_model,), 0.5))

    def arguments(self) -> dict[str, Any]:
        """mu ``[d_model]``."""
        return {"mu": self.mu}
