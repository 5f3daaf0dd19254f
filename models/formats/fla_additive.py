"""GLA and RetNet as flash-linear-attention publishes them.

Where norm and gate of the output are one module there, it has another name: ``fuse_norm`` decides what a weight is
called, and so there are two formats each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

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
from linrec.models.formats.format import Format
from linrec.models.formats.options import Options
from linrec.models.formats.weights import Weight, same

SAID = ("head_dim", "expand_v", "conv_size", "use_gate", "decay_floor")
ASSUMED = {
    "use_norm": True,
    "gate_activation": None,
    "num_v_heads": None,
    "gate_rank": 16,
    "gate_temperature": 16.0,
}


def _sizes(options: Options, heads: int, expand_k: float, expand_v: float) -> dict[str, Any]:
    """What both say of their heads, all of which have a key and a value of their own."""
    width = options.whole("hidden_size", 2048)
    keys = round(width * options.take("expand_k", expand_k))
    options.only("num_kv_heads", (None, heads), None, " (keys are shared)")
    options.only("feature_map", (None,), None)
    return {
        "head_dim": keys // heads,
        "expand_v": round(width * options.take("expand_v", expand_v)) / keys,
        "use_gate": options.take("use_output_gate", True),
        "norm_eps": options.take("norm_eps", 1e-6),
    }


def _gla(options: Options) -> Config:
    heads = options.whole("num_heads", 4)
    sizes = _sizes(options, heads, 0.5, 1.0)
    conv = options.whole("conv_size", 4)
    sizes["conv_size"] = conv if options.take("use_short_conv", False) else 0
    sizes["decay_floor"] = options.take("clamp_min", None)
    options.only("use_gk", (True,), True)
    options.only("use_gv", (False,), False)
    return fla_config(options, "gla", sizes, heads)


def _retnet(options: Options) -> Config:
    heads = options.whole("num_heads", 8)
    options.without_effect("use_short_conv", "conv_size")  # its model builds the layer without them
    return fla_config(options, "retnet", _sizes(options, heads, 1.0, 2.0), heads, ratio=2)


def _said(config: Config, model_type: str, values: Mapping[str, Any], fused: bool) -> dict[str, Any]:
    keys, _, wide = widths_of(values)
    return {
        **fla_options(config, model_type, values),
        "num_heads": values["num_heads"],
        "expand_k": keys / config.d_model,
        "expand_v": wide / config.d_model,
        "use_output_gate": values["use_gate"],
        "fuse_norm": fused,
    }


def _gla_options(config: Config, fused: bool) -> dict[str, Any]:
    values = resolved(config, only_options(config, "gla", SAID, ASSUMED))
    conv = {"use_short_conv": bool(values["conv_size"]), "conv_size": values["conv_size"] or 4}
    return {**_said(config, "gla", values, fused), **conv, "clamp_min": values["decay_floor"]}


def _retnet_options(config: Config, fused: bool) -> dict[str, Any]:
    assumed = {**ASSUMED, "conv_size": 0}
    values = only_options(config, "retnet", ("head_dim", "expand_v", "use_gate"), assumed)
    return _said(config, "retnet", resolved(config, values), fused)


def _mixer(theirs: str, ours: str, sizes: Mapping[str, Any], fused: bool) -> list[Weight]:
    norm = "g_norm_swish_gate" if fused and sizes["use_gate"] else "g_norm"
    found = heads_weights(theirs, ours, sizes, widths_of(sizes))
    found.append(same(f"{theirs}{norm}.weight", ours + "norm.weight"))
    return [*found, same(theirs + "g_proj.weight", ours + "gate_proj.weight")] if sizes["use_gate"] else found


def _gla_mixer(theirs: str, ours: str, sizes: Mapping[str, Any], fused: bool) -> list[Weight]:
    decay = [same(f"{theirs}gk_proj.{n}", f"{ours}f_proj.{n}") for n in ("0.weight", "1.weight", "1.bias")]
    return [*_mixer(theirs, ours, sizes, fused), *decay]


def _recognised(model_type: str, fused: bool) -> Callable[[Mapping[str, Any]], bool]:
    return lambda values: (
        values.get("model_type") == model_type and bool(values.get("fuse_norm", True)) is fused
    )


def _formats() -> tuple[Format, ...]:
    families = (
        ("gla", "GLAForCausalLM", _gla, _gla_options, _gla_mixer),
        ("retnet", "RetNetForCausalLM", _retnet, _retnet_options, _mixer),
    )
    return tuple(
        Format(
            name if fused else f"{name}-unfused",
            architecture,
            _recognised(name, fused),
            config,
            partial(options, fused=fused),
            partial(fla_weights, mixer=partial(mixer, fused=fused), layer=name),
        )
        for name, architecture, config, options, mixer in families
        for fused in (True, False)
    )


FORMATS = _formats()
