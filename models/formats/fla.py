"""What the families of flash-linear-attention share: a norm and a mixer, a norm and an MLP, and their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from linrec.errors import CheckpointError
from linrec.models.blocks import make_layer
from linrec.models.config import Config
from linrec.models.formats.format import layer_values, usual_blocks
from linrec.models.formats.options import Options
from linrec.models.formats.weights import Weight, joined, reshaped, same

# How kernels are chosen, and what the layers of today's version of that project no longer look at.
WITHOUT_EFFECT = ("attn_mode", "max_position_embeddings")
HARMLESS = ("backend", "chunk_size")  # options of ours that change how a layer is computed, not what

Mixer = Callable[[str, str, Mapping[str, Any]], list[Weight]]  # their prefix, ours, the layer's options


def fla_config(options: Options, layer: str, sizes: Mapping[str, Any], heads: int, ratio: int = 4) -> Config:
    """The model around ``layer`` with the options ``sizes``; ``ratio`` is the width of its MLP where none is given."""
    options.only("hidden_act", ("swish", "silu"), "swish")
    options.only("attnres_block_size", (None,), None, " (residuals are attended to)")
    options.only("norm_first", (False,), False)
    options.only("elementwise_affine", (True, None), True)
    inner = mlp_width(options, options.whole("hidden_size", 2048), ratio)
    return around(options, layer, sizes, heads, inner, norm_eps=options.take("norm_eps", 1e-6))


def around(
    options: Options, layer: str, sizes: Mapping[str, Any], heads: int, inner: int, **blocks: Any
) -> Config:
    """What all families say of a model; MLPs of ``inner`` channels, and what else is to say of its ``blocks``."""
    options.only("attn", (None,), None, " (there are layers of attention)")
    options.without_effect(*WITHOUT_EFFECT)
    size, width = options.whole("vocab_size", 32000), options.whole("hidden_size", 2048)
    tokens: dict[str, int | None] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    blocks |= {name: options.token(name, size, default) for name, default in tokens.items()}
    return Config(
        vocab_size=size,
        d_model=width,
        num_layers=options.whole("num_hidden_layers", 24),
        pattern=(layer,),
        num_heads=heads,
        mlp_size=inner,
        tie_embeddings=options.take("tie_word_embeddings", False),
        layer_options={layer: dict(sizes)},
        **blocks,
    )


def mlp_width(options: Options, width: int, ratio: int) -> int:
    """The inner width of the gated MLP: as given, or two thirds of the ratio, rounded up to 256 channels."""
    given, times = options.take("intermediate_size", None), options.take("hidden_ratio", ratio)
    if given is not None:
        return options.whole("intermediate_size")
    return -(-int(width * (4 if times is None else times) * 2 / 3) // 256) * 256


def fla_options(config: Config, model_type: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What that project calls the sizes of the model around layers with the options ``values``."""
    if values["norm_eps"] != config.norm_eps:
        raise CheckpointError(f"{model_type}: one norm_eps stands for all norms, this model has two")
    return {**around_options(config, model_type), "hidden_act": "swish"}


def around_options(config: Config, model_type: str) -> dict[str, Any]:
    """The inverse of :func:`around`."""
    return {
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.mlp_width,
        "norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **{name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }


def only_options(
    config: Config, layer: str, said: Sequence[str], assumed: Mapping[str, Any], **blocks: Any
) -> dict[str, Any]:
    """Every option of the layer of a model of such layers and MLPs.

    Raises CheckpointError for another model, and for an option that is neither one of ``said`` nor has the value that
    the format assumes.
    """
    if set(config.layer_names) != {layer} or not config.mlp_width:
        raise CheckpointError(
            f"expected a model of {layer} layers and MLPs, got {' and '.join(sorted(set(config.layer_names)))}"
            f"{'' if config.mlp_width else ' without an MLP'}"
        )
    usual_blocks(config, **blocks)
    values = layer_values(config, layer)
    for name, value in values.items():
        if name not in (*said, *HARMLESS, "num_heads", "norm_eps") and value != assumed[name]:
            raise CheckpointError(
                f"{layer}: {name} = {value!r} cannot be said in this format, only {assumed[name]!r}"
            )
    return values


def fla_weights(config: Config, mixer: Mixer, layer: str) -> list[Weight]:
    """Every weight of the model; ``mixer`` lists those of one layer."""
    sizes = resolved(config, layer_values(config, layer))
    found = [same("model.embeddings.weight", "embed.weight"), same("model.norm.weight", "norm.weight")]
    for n in range(config.num_layers or 0):
        theirs, ours = f"model.layers.{n}.", f"blocks.{n}."
        found += [
            same(theirs + "attn_norm.weight", ours + "mixer_norm.weight"),
            same(theirs + "mlp_norm.weight", ours + "mlp_norm.weight"),
            *(
                same(f"{theirs}mlp.{name}_proj.weight", f"{ours}mlp.{name}.weight")
                for name in ("gate", "up", "down")
            ),
            *mixer(theirs + "attn.", ours + "mixer.", sizes),
        ]
    return found if config.tie_embeddings else [*found, same("lm_head.weight", "head.weight")]


def heads_weights(
    theirs: str, ours: str, sizes: Mapping[str, Any], widths: Sequence[int], names: str = "qkv"
) -> list[Weight]:
    """Projections of ``widths`` channels and their convolutions, which are one here, and that of the output."""
    parts = [f"{theirs}{name}" for name in names]
    found = [
        joined([f"{part}_proj.weight" for part in parts], ours + "qkv_proj.weight", widths),
        same(theirs + "o_proj.weight", ours + "o_proj.weight"),
    ]
    if sizes["conv_size"]:
        found.append(convolutions([f"{part}_conv1d.weight" for part in parts], ours + "conv.weight", widths))
    return found


def convolutions(theirs: Sequence[str], ours: str, widths: Sequence[int]) -> Weight:
    """Their filters ``[channels, 1, w]``, one after the other, are ours ``[channels, w]``."""
    sizes = list(widths)
    return Weight(
        tuple(theirs),
        (ours,),
        lambda x: [torch.cat([part.squeeze(1) for part in x])],
        lambda x: [part.unsqueeze(1).contiguous() for part in x[0].split(sizes)],
    )


def flattened(theirs: str, ours: str, heads: int) -> Weight:
    """Their vector is ours with a row for each of ``heads``."""
    return reshaped(theirs, ours, (-1,), (heads, -1))


def resolved(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a layer, and the sizes of its heads as the layer itself makes them where they are not given."""
    with torch.device("meta"):
        layer = make_layer(config, config.layer_names[0])
    sizes = {name: getattr(layer, name) for name in ("head_dim", "num_v_heads") if hasattr(layer, name)}
    return {**values, **sizes, "d_model": config.d_model}


def widths_of(sizes: Mapping[str, Any]) -> tuple[int, int, int]:
    """Channels of q, k and v of a layer whose heads have a width of their own."""
    keys, values = sizes["num_heads"] * sizes["head_dim"], sizes["head_dim"] * sizes["expand_v"]
    return keys, keys, sizes["num_v_heads"] * int(round(values, 6))
