"""What Mamba, Mamba-2 and FalconMamba share: blocks of a norm and a mixer, in two layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from linrec.errors import CheckpointError
from linrec.models.config import Config
from linrec.models.formats.options import Names, Options
from linrec.models.formats.weights import Weight, reshaped, same

TRANSFORMERS: Names = {
    "expand": ("expand", 2.0),
    "state_size": ("state_size", 16),
    "conv_size": ("conv_kernel", 4),
    "bias": ("use_bias", False),
    "conv_bias": ("use_conv_bias", True),
}
AUTHORS: Names = {
    "expand": ("expand", 2.0),
    "state_size": ("d_state", 16),
    "conv_size": ("d_conv", 4),
    "bias": ("bias", False),
    "conv_bias": ("conv_bias", True),
}

Mixer = Callable[[str, str, Mapping[str, Any]], list[Weight]]  # their prefix, ours, the layer's options


def transformers_config(
    options: Options, layer: str, sizes: Mapping[str, Any], tied: bool, heads: int = 1
) -> Config:
    """The model around ``layer`` with the options ``sizes``; ``tied`` is what this family assumes of its head."""
    size = options.whole("vocab_size")
    options.only("hidden_act", ("silu", "swish"), "silu")
    return Config(
        vocab_size=size,
        d_model=options.whole("hidden_size"),
        num_layers=options.whole("num_hidden_layers"),
        pattern=(layer,),
        num_heads=heads,
        mlp_ratio=None,
        tie_embeddings=options.take("tie_word_embeddings", tied),
        norm_eps=options.take("layer_norm_epsilon", 1e-5),
        layer_options={layer: dict(sizes)},
        bos_token_id=options.token("bos_token_id", size),
        eos_token_id=options.token("eos_token_id", size),
        pad_token_id=options.token("pad_token_id", size),
    )


def transformers_options(config: Config, model_type: str) -> dict[str, Any]:
    """What transformers calls the sizes of the model around the layers."""
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        **{name: getattr(config, name) for name in tokens},
    }


def authors_config(options: Options, layer: str, sizes: Mapping[str, Any], heads: int = 1) -> Config:
    """As :func:`transformers_config`, of the authors' own ``config.json``; the head is tied unless it says not."""
    options.only("rms_norm", (True,), True)
    options.only("d_intermediate", (0,), 0, " (there is an MLP)")
    options.only("attn_layer_idx", ([],), [], " (there are layers of attention)")
    options.without_effect("attn_cfg")
    size, multiple = options.whole("vocab_size"), options.whole("pad_vocab_size_multiple", 8)
    return Config(
        vocab_size=-(-size // multiple) * multiple,
        d_model=options.whole("d_model"),
        num_layers=options.whole("n_layer"),
        pattern=(layer,),
        num_heads=heads,
        mlp_ratio=None,
        tie_embeddings=options.take("tie_embeddings", True),
        norm_eps=1e-5,
        layer_options={layer: dict(sizes)},
    )


def authors_options(config: Config) -> dict[str, Any]:
    """The authors' names for the sizes of the model around the layers. CheckpointError for another eps than 1e-5."""
    if config.norm_eps != 1e-5:
        raise CheckpointError(f"norm_eps = {config.norm_eps} cannot be said in this format, only 1e-05")
    return {
        "d_model": config.d_model,
        "n_layer": config.num_layers,
        "vocab_size": config.vocab_size,
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": config.tie_embeddings,
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
    }


def is_authors(values: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is the authors' own, which has no ``model_type``."""
    known = {"d_model", "n_layer", "ssm_cfg"} <= values.keys() and "model_type" not in values
    return known and isinstance(values["ssm_cfg"], dict)


def backbone_weights(config: Config, mixer: Mixer, sizes: Mapping[str, Any], embedding: str) -> list[Weight]:
    """Every weight; ``embedding`` is what the layout calls its embedding."""
    found = [
        same(f"backbone.{embedding}.weight", "embed.weight"),
        same("backbone.norm_f.weight", "norm.weight"),
    ]
    for n in range(config.num_layers or 0):
        theirs, ours = f"backbone.layers.{n}", f"blocks.{n}"
        found.append(same(f"{theirs}.norm.weight", f"{ours}.mixer_norm.weight"))
        found += mixer(f"{theirs}.mixer.", f"{ours}.mixer.", sizes)
    return found if config.tie_embeddings else [*found, same("lm_head.weight", "head.weight")]


def mixer_weights(theirs: str, ours: str, sizes: Mapping[str, Any], names: Sequence[str]) -> list[Weight]:
    """Those of a mixer that have the same name and shape in both, ``names`` and biases, and of its convolution."""
    width = sizes["conv_size"]
    biases = ["in_proj.bias", "out_proj.bias"] if sizes["bias"] else []
    found = [same(theirs + name, ours + name) for name in (*names, *biases)]
    found += [same(theirs + "conv1d.bias", ours + "conv.bias")] if sizes["conv_bias"] else []
    return [*found, reshaped(theirs + "conv1d.weight", ours + "conv.weight", (-1, 1, width), (-1, width))]
