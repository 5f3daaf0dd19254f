"""The Mamba block, and Longhorn, which has the same frame."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from linrec import rules
from linrec.engines.numerics.forward_mode import silu
from linrec.errors import ConfigError
from linrec.layers.base import Layer
from linrec.layers.parts import ShortConvolution, time_step_bias, widened
from linrec.layers.projection import project


class MambaState(NamedTuple):
    """conv ``[B, w - 1, channels]``, memory ``[B, D, N]``."""

    conv: Tensor | None
    memory: Tensor | None


class SelectiveLayer(Layer):
    """The frame of Mamba and Longhorn: ``expand * d_model`` channels u and a gate z, short convolution with bias and
    SiLU on u, from it a step of rank ``step_rank`` (default d_model / 16) and two ``state_size`` projections, a rule
    with skip D, times silu(z), output projection. ``bias`` of the outer projections, ``conv_bias`` of the convolution;
    with ``inner_norm_eps`` the low-rank step and both projections are divided by their root mean square (FalconMamba,
    Zuo et al. 2024, arXiv:2410.05355). ``num_heads`` changes nothing: channels do not form heads.
    Raises ConfigError for sizes that do not fit.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        *,
        expand: float = 2.0,
        state_size: int = 16,
        conv_size: int = 4,
        step_rank: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        inner_norm_eps: float | None = None,
        chunk_size: int | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        self.d_model, self.inner = d_model, int(expand * d_model)
        rank = math.ceil(d_model / 16) if step_rank is None else step_rank
        if min(d_model, self.inner, state_size, rank) < 1:
            raise ConfigError(
                f"{type(self).__name__}: d_model={d_model}, expand={expand}, state_size={state_size}, "
                f"step_rank={rank} must all leave positive sizes"
            )
        self.how: dict[str, Any] = {"chunk_size": chunk_size, "backend": backend}
        self.inner_norm_eps = inner_norm_eps
        self.widths = [rank, state_size, state_size]
        self.in_proj = nn.Linear(d_model, 2 * self.inner, bias=bias)
        self.conv = ShortConvolution(self.inner, conv_size, bias=conv_bias)
        self.x_proj = nn.Linear(self.inner, sum(self.widths), bias=False)
        self.step_proj = nn.Linear(rank, self.inner)
        nn.init.uniform_(self.step_proj.weight, -(rank**-0.5), rank**-0.5)
        self.D = nn.Parameter(torch.ones(self.inner))
        self.out_proj = nn.Linear(self.inner, d_model, bias=bias)

    def inner_norm(self, x: Tensor) -> Tensor:
        """x ``[..., width]`` over its root mean square, without a weight; x itself where there is no such norm."""
        return x if self.inner_norm_eps is None else F.rms_norm(x, x.shape[-1:], eps=self.inner_norm_eps)

    def arguments(self, u: Tensor, step: Tensor, into: Tensor, out: Tensor) -> dict[str, Tensor]:
        """The rule's arguments from the channels, u ``[B, T, inner]``, the raw step, step ``[B, T, rank]``, and the two
        projections, into and out ``[B, T, N]``.
        """
        raise NotImplementedError

    def mix(
        self, x: Tensor, state: MambaState | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, MambaState]:
        """See :class:`Layer`."""
        state = state or MambaState(None, None)
        u, z = project(self.in_proj, x).chunk(2, dim=-1)
        u, conv = self.conv(u, state.conv, cu_seqlens)
        rank, into, out = (self.inner_norm(y) for y in self.x_proj(u).split(self.widths, dim=-1))
        arguments = self.arguments(u.to(into.dtype), widened(self.step_proj(rank)), into, out)
        y, memory = self.rule(**arguments, D=self.D, state=state.memory, cu_seqlens=cu_seqlens, **self.how)
        return project(self.out_proj, y * silu(z)), MambaState(conv, memory)


class Mamba(SelectiveLayer):
    """Mamba block (Gu, Dao 2023, arXiv:2312.00752): dt = softplus(step), A = -(1 .. N) at the start."""

    rule = rules.mamba

    def __init__(self, d_model: int, num_heads: int | None = None, **sizes: Any):
        super().__init__(d_model, num_heads, **sizes)
        rates = torch.arange(1.0, self.widths[1] + 1).log()
        self.A_log = nn.Parameter(repeat(rates, "N -> D N", D=self.inner).contiguous())
        self.step_proj.bias = nn.Parameter(time_step_bias(self.inner))

    def arguments(self, u: Tensor, step: Tensor, into: Tensor, out: Tensor) -> dict[str, Tensor]:
        """x, dt, A, B, C."""
        return {"x": u, "dt": F.softplus(step), "A": -widened(self.A_log).exp(), "B": into, "C": out}


class Longhorn(SelectiveLayer):
    """Longhorn (Liu et al. 2024, arXiv:2407.14207): Mamba's frame, beta = sigmoid(step), keys and queries."""

    rule = rules.longhorn

    def arguments(self, u: Tensor, step: Tensor, into: Tensor, out: Tensor) -> dict[str, Tensor]:
        """v, beta, k, q."""
        return {"q": out, "k": into, "v": u, "beta": step.sigmoid()}
