"""RWKV's channel mixing: an MLP that sees the token before as well."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from linrec.layers.base import Layer
from linrec.layers.projection import project
from linrec.layers.shift import token_shift


class ChannelMixingState(NamedTuple):
    """last ``[B, d_model]``, the last token."""

    last: Tensor


class ChannelMixing(Layer):
    """down(relu(up(x + mu (x_before - x)))^2), RWKV-7's (Peng et al. 2025, arXiv:2503.14456); no entry of LAYERS."""

    def __init__(self, d_model: int, width: int):
        super().__init__()
        self.d_model = d_model
        self.mu = nn.Parameter(torch.rand(d_model))
        self.up = nn.Linear(d_model, width, bias=False)
        self.down = nn.Linear(width, d_model, bias=False)

    def mix(
        self, x: Tensor, state: ChannelMixingState | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, ChannelMixingState]:
        """See :class:`Layer`."""
        before, last = token_shift(x, None if state is None else state.last, cu_seqlens)
        h = project(self.up, x + (before - x) * self.mu.to(x.dtype))
        return project(self.down, h.relu().square()), ChannelMixingState(last)
