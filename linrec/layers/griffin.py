"""Griffin's recurrent block."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linrec import rules
from linrec.errors import ConfigError
from linrec.layers.base import Layer, segment_count, token_positions, tokens_seen
from linrec.layers.parts import ShortConvolution, merge_heads, split_heads, widened
from linrec.layers.projection import project

SHARPNESS = 8.0  # Griffin's constant c
RESET = -100.0  # e^-100 is zero and sqrt(1 - e^-200) is one, in every precision


class RGLRUState(NamedTuple):
    """conv ``[B, w - 1, channels]``, memory ``[B, D]``, seen ``[B]`` tokens."""

    conv: Tensor | None
    memory: Tensor | None
    seen: Tensor


class RGLRU(Layer):
    """Recurrent block of Griffin (De et al. 2024, arXiv:2402.19427).

    One branch: projection, convolution over four tokens, RG-LRU; the other: projection, GELU; their product is
    projected. g = -8 softplus(L) sigmoid(r); r and i are block-diagonal maps of the convolved branch, one block a
    head. The first token of a sequence enters with weight one, as in the authors' code, unless ``full_start`` is off.
    """

    rule = rules.rg_lru

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        expand: float = 1.0,
        conv_size: int = 4,
        full_start: bool = True,
        chunk_size: int | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        self.d_model, self.inner, self.num_heads = d_model, int(expand * d_model), num_heads
        if num_heads < 1 or self.inner < 1 or self.inner % num_heads:
            raise ConfigError(f"RGLRU: {self.inner} channels must divide into num_heads={num_heads}")
        self.full_start = full_start
        self.how: dict[str, Any] = {"chunk_size": chunk_size, "backend": backend}
        width = self.inner // num_heads
        self.in_proj = nn.Linear(d_model, 2 * self.inner)
        self.conv = ShortConvolution(self.inner, conv_size, bias=True, activation=False)
        bound = 1 / math.sqrt(width)
        self.gate_weight = nn.Parameter(torch.empty(num_heads, width, 2 * width).uniform_(-bound, bound))
        self.gate_bias = nn.Parameter(torch.zeros(num_heads, 2 * width))
        # At r = 1 the squared decays are uniform between 0.9^2 and 0.999^2.
        decay = torch.empty(self.inner).uniform_(0.9**2, 0.999**2).sqrt()
        self.rate = nn.Parameter(torch.log(torch.expm1(-decay.log() / SHARPNESS)))
        self.out_proj = nn.Linear(self.inner, d_model)

    def mix(
        self, x: Tensor, state: RGLRUState | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, RGLRUState]:
        """See :class:`Layer`."""
        if state is None:
            rows = segment_count(x, cu_seqlens)
            state = RGLRUState(None, None, torch.zeros(rows, dtype=torch.int64, device=x.device))
        u, gate = project(self.in_proj, x).chunk(2, dim=-1)
        u, conv = self.conv(u, state.conv, cu_seqlens)
        g, i = self._gates(u)
        if self.full_start:  # nothing precedes the first token, and forgetting everything gives it weight one
            first = token_positions(x, state.seen, cu_seqlens) == 0
            g = torch.where(first[..., None], RESET, g)
        h, memory = self.rule(u, g, i, state=state.memory, cu_seqlens=cu_seqlens, **self.how)
        y = project(self.out_proj, h * F.gelu(gate, approximate="tanh"))
        return y, RGLRUState(conv, memory, tokens_seen(state.seen, x, cu_seqlens))

    def _gates(self, u: Tensor) -> tuple[Tensor, Tensor]:
        heads = split_heads(u, self.num_heads)
        raw = torch.einsum("BTHI,HIJ->BTHJ", heads, self.gate_weight.to(u.dtype)) + self.gate_bias
        r, i = widened(raw).sigmoid().chunk(2, dim=-1)
        r, i = merge_heads(r), merge_heads(i)
        return -SHARPNESS * F.softplus(widened(self.rate)) * r, i
