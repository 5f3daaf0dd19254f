"""A block of the language model: a mixing layer and an MLP, each behind a norm and beside a residual stream."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from linrec.errors import ConfigError
from linrec.layers import LAYERS, Layer
from linrec.layers.channel_mixing import ChannelMixing
from linrec.layers.parts import LayerNorm, OffsetRMSNorm, RMSNorm
from linrec.models.config import Config, argument_types
from linrec.models.mlp import make_mlp
from linrec.models.scaling import scaled
from linrec.state import State, export_names


class BlockState(NamedTuple):
    """States of the mixing layer and of the MLP, where the MLP has one; else the layer's state alone is a block's."""

    mixer: State
    mlp: State


export_names()


class Block(nn.Module):
    """x + r mixer(norm(x)), then x + r mlp(norm(x)) where the configuration has an MLP; r is ``residual_scale``.

    What layers hand on to later ones stands behind the channels of x, ``[B, T, d_model + beside]``, in blocks between
    them as well: so whatever treats x (padding, packing, recomputation) treats it alike.
    """

    def __init__(self, config: Config, name: str, depth: int = 0):
        super().__init__()
        self.d_model, self.residual_scale = config.d_model, config.residual_scale
        self.pre_norm = make_norm(config) if config.embed_norm and depth == 0 else None
        self.mixer_norm = make_norm(config)
        self.mixer = make_layer(config, name, depth)
        self.has_mlp = bool(config.mlp_width)
        self.mlp_remembers = self.has_mlp and config.mlp == "rwkv"
        if self.has_mlp:
            self.mlp_norm = make_norm(config)
            sizes = (config.d_model, config.mlp_width)
            self.mlp = (
                ChannelMixing(*sizes) if self.mlp_remembers else make_mlp(config.mlp, *sizes, config.mlp_bias)
            )

    def forward(
        self, x: Tensor, state: State, cu_seqlens: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, State]:
        """x ``[B, T, d_model + beside]``; the other arguments and the state are the mixing layer's."""
        how = {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
        mixer, mlp = (state or (None, None)) if self.mlp_remembers else (state, None)
        x, handed = self._apart(x)
        x = x if self.pre_norm is None else self.pre_norm(x)
        h = self.mixer_norm(x)
        if self.mixer.beside and handed is not None:
            h = torch.cat([h, handed], dim=-1)
        y, mixer = self.mixer(h, mixer, **how)
        y, newer = self._apart(y)
        x, handed = x + scaled(y, self.residual_scale), handed if newer is None else newer
        if self.mlp_remembers:
            y, mlp = self.mlp(self.mlp_norm(x), mlp, **how)
            x, state = x + scaled(y, self.residual_scale), BlockState(mixer, mlp)
        else:
            x = x + scaled(self.mlp(self.mlp_norm(x)), self.residual_scale) if self.has_mlp else x
            state = mixer
        return x if handed is None else torch.cat([x, handed], dim=-1), state

    def _apart(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The stream, and what stands behind it."""
        width = self.d_model
        return (x, None) if x.shape[-1] == width else (x[..., :width], x[..., width:])


def make_blocks(config: Config) -> nn.ModuleList:
    """Every block, in order; each mixing layer knows the first of its kind."""
    blocks = [Block(config, name, depth) for depth, name in enumerate(config.layer_names)]
    first: dict[str, Layer] = {}
    for name, block in zip(config.layer_names, blocks, strict=True):
        if block.mixer is not first.setdefault(name, block.mixer):
            block.mixer.joins(first[name])
    return nn.ModuleList(blocks)


def make_norm(config: Config) -> RMSNorm | OffsetRMSNorm | LayerNorm:
    """The norm before mixing layers, MLPs and the head."""
    if config.norm == "rms":
        return RMSNorm(config.d_model, eps=config.norm_eps)
    if config.norm == "rms_offset":
        return OffsetRMSNorm(config.d_model, eps=config.norm_eps)
    return LayerNorm(config.d_model, eps=config.norm_eps, bias=config.norm_bias)


def make_layer(config: Config, name: str, depth: int = 0) -> Layer:
    """The mixing layer ``name``, which is told its ``depth`` and the number of layers if it asks for them.

    ConfigError, with the layer's own reason, where the sizes do not fit it.
    """
    known, place = argument_types(name), {"depth": depth, "num_layers": config.num_layers}
    arguments: dict[str, Any] = {option: value for option, value in place.items() if option in known}
    arguments |= {"num_heads": config.num_heads, **config.layer_options.get(name, {})}
    try:
        return LAYERS[name](d_model=config.d_model, **arguments)
    except (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        given = ", ".join(f"{k}={v!r}" for k, v in {"d_model": config.d_model, **arguments}.items())
        raise ConfigError(f"layer {name!r} cannot be built from {given}: {error}") from error
