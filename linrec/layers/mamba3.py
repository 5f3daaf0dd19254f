"""The Mamba-3 block."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from linrec import rules
from linrec.errors import ConfigError
from linrec.layers.base import Layer
from linrec.layers.mamba2 import head_count
from linrec.layers.parts import GatedRMSNorm, TimeStep, merge_heads, split_heads, widened
from linrec.layers.projection import project
from linrec.rules.mamba3 import Mamba3State


class Mamba3(Layer):
    """Mamba-3 block (Lahoti, Li, Chen et al. 2026, arXiv:2603.15569).

    One input projection to z, x, B, C, dt, the trapezoidal share lam = sigmoid(raw) and the angles
    dt pi tanh(raw); no convolution. RMSNorm on B and C, and a bias a head on each (so B and C are per head); skip D;
    RMSNorm(y * silu(z)); output projection. ``rotary_fraction`` of the ``state_size`` channels turn.

    ``mimo_rank`` R > 1 is the form with R inputs and outputs a head, of the rule ``mamba3_mimo``: R times the B and
    C, x and z are spread over the ranks by ``mimo_x`` and ``mimo_z``, and the R gated and normalised outputs are
    added with the weights ``mimo_o``.
    """

    rule = rules.mamba3

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        *,
        expand: float = 2.0,
        head_dim: int | None = None,
        state_size: int = 128,
        num_groups: int = 1,
        mimo_rank: int = 1,
        rotary_fraction: float = 0.5,
        norm_eps: float = 1e-5,
        chunk_size: int | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        self.d_model, self.inner = d_model, int(expand * d_model)
        self.num_heads = head_count("Mamba3", self.inner, num_heads, head_dim)
        self._check_sizes(num_groups, mimo_rank)
        self.num_groups, self.state_size, self.mimo_rank = num_groups, state_size, mimo_rank
        self.angles = max(int(state_size * rotary_fraction) // 2, 1)
        self.how: dict[str, Any] = {"chunk_size": chunk_size, "backend": backend}
        bc = num_groups * mimo_rank * state_size
        self.widths = [self.inner, self.inner, bc, bc, self.num_heads, self.num_heads, self.angles]
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.b_norm, self.c_norm = (GatedRMSNorm(state_size, norm_eps) for _ in range(2))
        self.b_bias, self.c_bias = (
            nn.Parameter(torch.ones(self.num_heads, *self._key_shape())) for _ in range(2)
        )
        self.decay = TimeStep(self.num_heads)
        self.D = nn.Parameter(torch.ones(self.num_heads))
        self.norm = GatedRMSNorm(self.inner, norm_eps, gate_first=True)
        self.out_proj = nn.Linear(self.inner, d_model, bias=False)
        if mimo_rank > 1:
            spread = torch.ones(self.num_heads, mimo_rank, self.inner // self.num_heads)
            self.mimo_x, self.mimo_o = (nn.Parameter(spread / mimo_rank) for _ in range(2))
            self.mimo_z = nn.Parameter(spread)

    def _check_sizes(self, num_groups: int, mimo_rank: int) -> None:
        if self.num_heads < 1 or self.inner % self.num_heads or self.num_heads % num_groups:
            raise ConfigError(
                f"Mamba3: {self.inner} channels must divide into num_heads={self.num_heads}, "
                f"and these into num_groups={num_groups}"
            )
        if mimo_rank < 1:
            raise ConfigError(f"Mamba3: mimo_rank must be at least 1, got {mimo_rank}")

    def mix(
        self, x: Tensor, state: Mamba3State | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Mamba3State]:
        """See :class:`Layer`."""
        z, u, b, c, dt, lam, angle = project(self.in_proj, x).split(self.widths, dim=-1)
        dt, rate = self.decay(dt)
        terms = {
            "x": split_heads(u, self.num_heads),
            "dt": dt,
            "A": rate,
            "B": self._per_head(b, self.b_norm, self.b_bias),
            "C": self._per_head(c, self.c_norm, self.c_bias),
            "lam": widened(lam).sigmoid(),
            "theta": dt[..., None] * math.pi * widened(angle).tanh()[:, :, None],
            "D": self.D,
        }
        how = {"state": state, "cu_seqlens": cu_seqlens, **self.how}
        if self.mimo_rank == 1:
            y, memory = rules.mamba3(**terms, **how)
            y = self.norm(merge_heads(y), z)
            return project(self.out_proj, y), memory
        y, memory = rules.mamba3_mimo(**terms, mimo_x=self.mimo_x, **how)
        return project(self.out_proj, self._joined(y, z)), memory

    def _joined(self, y: Tensor, z: Tensor) -> Tensor:
        """y ``[B, T, HV, R, P]`` gated and normalised in every rank, then added: ``[B, T, inner]``."""
        gate = rearrange(z, "B T (HV P) -> B T HV 1 P", HV=self.num_heads) * self.mimo_z.to(z.dtype)
        y, gate = (rearrange(t, "B T HV R P -> B T R (HV P)") for t in (y, gate))
        weight = rearrange(self.mimo_o, "HV R P -> R (HV P)")
        return (self.norm(y, gate) * weight.to(y.dtype)).sum(2)

    def _key_shape(self) -> tuple[int, ...]:
        """B and C of one group."""
        return (self.state_size,) if self.mimo_rank == 1 else (self.mimo_rank, self.state_size)

    def _per_head(self, x: Tensor, norm: GatedRMSNorm, bias: Tensor) -> Tensor:
        """Normalised in groups, then given to the heads with their biases."""
        grouped = norm(x.unflatten(2, (self.num_groups, *self._key_shape())))  # B T (G R N) -> B T G R N
        each = self.num_heads // self.num_groups
        per_head = grouped.repeat_interleave(each, dim=2)  # B T G R N -> B T (G each) R N
        return per_head + bias.to(grouped.dtype)
