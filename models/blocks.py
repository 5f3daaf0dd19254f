"""A block of the language model: a mixing layer and an MLP, each behind a norm and beside a residual stream."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from linrec.engines.numerics.forward_mode import silu
from linrec.errors import ConfigError
from linrec.layers import LAYERS, Layer
from linrec.layers.parts import RMSNorm
from linrec.layers.projection import project
from linrec.models.config import Config
from linrec.state import State


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)),  Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, d_model: int, width: int):
        super().__init__()
        self.gate = nn.Linear(d_model, width, bias=False)
        self.up = nn.Linear(d_model, width, bias=False)
        self.down = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x ``[..., d_model]``, and the result."""
        return project(self.down, silu(project(self.gate, x)) * project(self.up, x))


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)) where the configuration has an MLP."""

    def __init__(self, config: Config, name: str):
        super().__init__()
        self.mixer_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.mixer = make_layer(config, name)
        self.has_mlp = bool(config.mlp_width)
        if self.has_mlp:
            self.mlp_norm = RMSNorm(config.d_model, eps=config.norm_eps)
            self.mlp = SwiGLU(config.d_model, config.mlp_width)

    def forward(
        self, x: Tensor, state: State, cu_seqlens: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, State]:
        """x ``[B, T, d_model]``; the other arguments and the state are the mixing layer's."""
        y, state = self.mixer(self.mixer_norm(x), state, cu_seqlens=cu_seqlens, attention_mask=attention_mask)
        x = x + y
        if self.has_mlp:
            x = x + self.mlp(self.mlp_norm(x))
        return x, state


def make_layer(config: Config, name: str) -> Layer:
    """The mixing layer ``name``; ConfigError, with the layer's own reason, where the sizes do not fit it."""
    arguments: dict[str, Any] = {"num_heads": config.num_heads, **config.layer_options.get(name, {})}
    try:
        return LAYERS[name](d_model=config.d_model, **arguments)
    except (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        given = ", ".join(f"{k}={v!r}" for k, v in {"d_model": config.d_model, **arguments}.items())
        raise ConfigError(f"layer {name!r} cannot be built from {given}: {error}") from error
