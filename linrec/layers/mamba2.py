"""The Mamba-2 block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from linrec import rules
from linrec.errors import ConfigError
from linrec.layers.base import Layer
from linrec.layers.parts import GatedRMSNorm, ShortConvolution, TimeStep, merge_heads, split_heads
from linrec.layers.projection import project


class Mamba2State(NamedTuple):
    """conv ``[B, w - 1, channels]``, memory ``[B, HV, N, P]``."""

    conv: Tensor | None
    memory: Tensor | None


def head_count(who: str, channels: int, num_heads: int | None, head_dim: int | None) -> int:
    """Heads of so many channels: ``num_heads``, or as many of width ``head_dim`` (64) as there is room for.

    Raises ConfigError where both are given, or a width, and do not make up the channels.
    """
    heads = max(channels // (head_dim or 64), 1) if num_heads is None else num_heads
    if head_dim is not None and heads * head_dim != channels:
        raise ConfigError(
            f"{who}: {channels} channels are not num_heads={heads} of head_dim={head_dim}; give one of the two"
        )
    return heads


class Mamba2(Layer):
    """Mamba-2 block (Dao, Gu 2024, arXiv:2405.21060).

    One input projection to z, x, B, C, dt; short convolution with bias and SiLU on x, B, C; dt = softplus(raw +
    bias); the rule with skip D; RMSNorm(y * silu(z)) over each group; output projection. ``expand * d_model``
    channels in heads of ``head_dim`` (64; or ``num_heads`` of them), ``state_size`` N, B and C shared by
    ``num_groups`` groups. ``bias`` of both projections, ``conv_bias`` of the convolution; dt is held within
    ``time_step_limit`` (low, high).
    """

    rule = rules.mamba2

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        *,
        expand: float = 2.0,
        head_dim: int | None = None,
        state_size: int = 128,
        num_groups: int = 1,
        bias: bool = False,
        conv_bias: bool = True,
        time_step_limit: tuple[float, float] | None = None,
        conv_size: int = 4,
        norm_eps: float = 1e-5,
        chunk_size: int | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        self.d_model, self.inner = d_model, int(expand * d_model)
        self.num_heads = head_count("Mamba2", self.inner, num_heads, head_dim)
        if min(state_size, num_groups) < 1:
            raise ConfigError(f"Mamba2: state_size={state_size} and num_groups={num_groups} must be positive")
        if self.num_heads < 1 or self.inner % self.num_heads or self.num_heads % num_groups:
            raise ConfigError(
                f"Mamba2: {self.inner} channels must divide into num_heads={self.num_heads}, "
                f"and these into num_groups={num_groups}"
            )
        self.num_groups, self.state_size = num_groups, state_size
        self.chunk_size, self.backend = chunk_size, backend
        mixed = self.inner + 2 * num_groups * state_size
        self.widths = [self.inner, mixed, self.num_heads]
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=bias)
        self.conv = ShortConvolution(mixed, conv_size, bias=conv_bias)
        self.decay = TimeStep(self.num_heads, limit=time_step_limit)
        self.D = nn.Parameter(torch.ones(self.num_heads))
        self.norm = GatedRMSNorm(self.inner, norm_eps, gate_first=True, groups=num_groups)
        self.out_proj = nn.Linear(self.inner, d_model, bias=bias)

    def mix(
        self, x: Tensor, state: Mamba2State | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Mamba2State]:
        """See :class:`Layer`."""
        state = state or Mamba2State(None, None)
        z, mixed, raw = project(self.in_proj, x).split_with_sizes(self.widths, -1)
        mixed, conv = self.conv(mixed, state.conv, cu_seqlens)
        bc = self.num_groups * self.state_size
        u, b, c = mixed.split_with_sizes([self.inner, bc, bc], -1)
        dt, rate = self.decay(raw)
        y, memory = self.rule(
            split_heads(u, self.num_heads),
            dt,
            rate,
            split_heads(b, self.num_groups),
            split_heads(c, self.num_groups),
            self.D,
            state=state.memory,
            cu_seqlens=cu_seqlens,
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        y = self.norm(merge_heads(y), z)
        return project(self.out_proj, y), Mamba2State(conv, memory)
