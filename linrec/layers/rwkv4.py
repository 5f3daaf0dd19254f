"""RWKV-4's time mixing."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from linrec import rules
from linrec.engines.wkv import WKVState
from linrec.errors import ConfigError
from linrec.layers.base import Layer
from linrec.layers.parts import widened
from linrec.layers.projection import project
from linrec.layers.shift import token_shift


class RWKV4State(NamedTuple):
    """last ``[B, d_model]``, the token before; memory, the rule's sums."""

    last: Tensor | None
    memory: WKVState | None


class RWKV4(Layer):
    """RWKV-4 time mixing (Peng et al. 2023, arXiv:2305.13048).

    k, v, r from learned mixtures of the token and the one before, o = W (sigmoid(r) * wkv(k, v)). ``layer`` of
    ``layers`` sets the initial decays and mixtures, which differ with depth. ``num_heads`` changes nothing.
    """

    rule = rules.rwkv4

    def __init__(
        self,
        d_model: int,
        num_heads: int = 1,
        *,
        layer: int = 0,
        layers: int = 1,
        chunk_size: int | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        if d_model < 1 or not 0 <= layer < layers:
            raise ConfigError(f"RWKV4: d_model={d_model}, layer={layer} of layers={layers} do not fit")
        self.d_model = d_model
        self.how: dict[str, Any] = {"chunk_size": chunk_size, "backend": backend}
        rises, falls = layer / max(layers - 1, 1), 1 - layer / layers
        place = torch.arange(d_model) / max(d_model - 1, 1)
        self.decay = nn.Parameter(-5 + 8 * place ** (0.7 + 1.3 * rises))
        self.bonus = nn.Parameter(torch.tensor(0.3).log() + 0.5 * ((torch.arange(d_model) + 1) % 3 - 1))
        mixture = (torch.arange(d_model) / d_model) ** falls
        self.mix_k = nn.Parameter(mixture.clone())
        self.mix_v = nn.Parameter(mixture + 0.3 * rises)
        self.mix_r = nn.Parameter(mixture.sqrt())
        self.k_proj, self.v_proj, self.r_proj, self.out_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )

    def mix(
        self, x: Tensor, state: RWKV4State | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, RWKV4State]:
        """See :class:`Layer`."""
        state = state or RWKV4State(None, None)
        before, last = token_shift(x, state.last, cu_seqlens)
        k, v, r = (
            project(module, torch.lerp(before, x, part.to(x.dtype)))
            for module, part in (
                (self.k_proj, self.mix_k),
                (self.v_proj, self.mix_v),
                (self.r_proj, self.mix_r),
            )
        )
        w = -widened(self.decay).exp()
        o, memory = self.rule(k, v, w, self.bonus, state=state.memory, cu_seqlens=cu_seqlens, **self.how)
        return project(self.out_proj, r.sigmoid() * o), RWKV4State(last, memory)
