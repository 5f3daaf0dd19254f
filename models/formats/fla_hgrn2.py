"""HGRN2 as flash-linear-attention publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from linrec.errors import CheckpointError
from linrec.models.config import Config
from linrec.models.formats.fla import (
    fla_config,
    fla_options,
    fla_weights,
    heads_weights,
    only_options,
    resolved,
    widths_of,
)
from linrec.models.formats.format import Format, layer_values, of_type
from linrec.models.formats.options import Options
from linrec.models.formats.weights import Weight, same

LAYER = "hgrn2"
INNER_EPS = 1e-5  # its layer calls the norm of the output without the norm_eps that the other norms have
ASSUMED = {
    "lower_bound": 0.0,
    "depth": 0,
    "num_layers": 1,
    "num_v_heads": None,
    "use_gate": False,
    "gate_activation": None,
    "use_norm": True,
    "norm_all_heads": True,
}


def _config(options: Options) -> Config:
    width, ratio = options.whole("hidden_size", 2048), options.take("expand_ratio", 128)
    heads = options.take("num_heads", None)
    if ratio is None:
        heads = options.whole("num_heads")
        ratio = width // heads
    else:
        heads = width // options.whole("expand_ratio", 128)
    conv = options.whole("conv_size", 4)
    sizes = {
        "head_dim": ratio,
        "expand_v": width // heads / ratio,
        "learned_bounds": options.take("use_lower_bound", True),
        "conv_size": conv if options.take("use_short_conv", False) else 0,
        "conv_activation": False,
        "norm_all_heads": True,
        "norm_eps": INNER_EPS,
    }
    return fla_config(options, LAYER, sizes, heads)


def _options(config: Config) -> dict[str, Any]:
    known = ("head_dim", "expand_v", "learned_bounds", "conv_size", "conv_activation")
    values = resolved(config, only_options(config, LAYER, known, ASSUMED))
    if values["norm_eps"] != INNER_EPS or (values["conv_size"] and values["conv_activation"]):
        raise CheckpointError(
            f"hgrn2: norm_eps of the layer = {values['norm_eps']} and conv_activation = {values['conv_activation']} "
            f"cannot be said in this format, only {INNER_EPS} and False"
        )
    if values["num_heads"] != config.d_model // values["head_dim"] or widths_of(values)[2] != config.d_model:
        raise CheckpointError(
            f"hgrn2: head_dim = {values['head_dim']} and num_heads do not make d_model channels"
        )
    return {
        **fla_options(config, "hgrn2", {"norm_eps": config.norm_eps}),
        "expand_ratio": values["head_dim"],
        "num_heads": values["num_heads"],
        "use_lower_bound": values["learned_bounds"],
        "use_short_conv": bool(values["conv_size"]),
        "conv_size": values["conv_size"] or 4,
    }


def _mixer(theirs: str, ours: str, sizes: Mapping[str, Any]) -> list[Weight]:
    found = heads_weights(theirs, ours, sizes, widths_of(sizes), names="qfi")
    return [*found, same(theirs + "g_norm.weight", ours + "norm.weight")]


def _weights(config: Config) -> list[Weight]:
    bounds = same("model.lower_bounds", "blocks.0.mixer.bounds.weight")
    found = fla_weights(config, _mixer, LAYER)
    return [*found, bounds] if layer_values(config, LAYER)["learned_bounds"] else found


FORMATS = (Format("hgrn2", "HGRN2ForCausalLM", of_type("hgrn2"), _config, _options, _weights),)
