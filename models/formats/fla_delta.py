"""Gated DeltaNet, Kimi delta attention and DeltaNet as flash-linear-attention publishes them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from linrec.models.config import Config
from linrec.models.formats.fla import (
    fla_config,
    fla_options,
    fla_weights,
    flattened,
    heads_weights,
    only_options,
    resolved,
    widths_of,
)
from linrec.models.formats.format import Format, of_type
from linrec.models.formats.options import Options
from linrec.models.formats.weights import Weight, same

SAID = ("head_dim", "num_v_heads", "expand_v", "conv_size", "allow_neg_eigval")
ASSUMED = {
    "use_norm": True,
    "use_gate": True,
    "use_beta": True,
    "key_activation": "silu",
    "key_norm": "l2",
    "gate_activation": None,
    "decay_floor": None,
}
ACTIVATIONS = {"silu": "silu", "relu": "relu", "elu": "elu+1", "identity": "identity"}  # theirs, ours
NORMS = {"l2": "l2", "sum": "l1"}


def _sizes(options: Options, **defaults: Any) -> dict[str, Any]:
    """What both gated layers say of their heads."""
    heads = options.whole("num_heads", defaults["num_heads"])
    width = options.whole("conv_size", 4)
    return {
        "head_dim": options.whole("head_dim", defaults["head_dim"]),
        "num_v_heads": options.take("num_v_heads", None) or heads,
        "expand_v": float(options.take("expand_v", defaults["expand_v"])),
        "conv_size": width if options.take("use_short_conv", True) else 0,
        "allow_neg_eigval": options.take("allow_neg_eigval", False),
        "norm_eps": options.take("norm_eps", 1e-6),
    }


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`_sizes`."""
    return {
        **{
            name: values[name]
            for name in ("num_heads", "head_dim", "num_v_heads", "expand_v", "allow_neg_eigval")
        },
        **_convolution(values),
    }


def _convolution(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"use_short_conv": bool(values["conv_size"]), "conv_size": values["conv_size"] or 4}


def _gated(options: Options) -> Config:
    sizes = _sizes(options, num_heads=6, head_dim=256, expand_v=2.0)
    sizes["use_gate"] = options.take("use_gate", True)
    gate = options.only("output_gate_activation", ("swish", "silu", "sigmoid"), "swish")
    sizes["gate_activation"] = "sigmoid" if gate == "sigmoid" else None
    return fla_config(options, "gated_delta_net", sizes, options.whole("num_heads", 6))


def _gated_options(config: Config) -> dict[str, Any]:
    layer = "gated_delta_net"
    values = resolved(config, only_options(config, layer, (*SAID, "use_gate", "gate_activation"), ASSUMED))
    gate = {"output_gate_activation": values["gate_activation"] or "swish", "use_gate": values["use_gate"]}
    return {**fla_options(config, "gated_deltanet", values), **_said(values), **gate}


def _kimi(options: Options) -> Config:
    sizes = _sizes(options, num_heads=16, head_dim=128, expand_v=1.0)
    sizes["decay_floor"] = options.take("lower_bound", None)
    options.only("safe_gate", (False, sizes["decay_floor"] is not None), False, " without a lower_bound")
    return fla_config(options, "kimi_delta_attention", sizes, options.whole("num_heads", 16))


def _kimi_options(config: Config) -> dict[str, Any]:
    values = only_options(config, "kimi_delta_attention", (*SAID, "decay_floor"), ASSUMED)
    values = resolved(config, values)
    floor = values["decay_floor"]
    bound = {"lower_bound": floor, "safe_gate": floor is not None}
    return {**fla_options(config, "kda", values), **_said(values), **bound}


def _plain(options: Options) -> Config:
    heads, width = options.whole("num_heads", 16), options.whole("hidden_size", 2048)
    keys, values = (float(options.take(name, 1.0)) for name in ("expand_k", "expand_v"))
    options.only("use_output_norm", (True,), True)
    conv = options.whole("conv_size", 4)
    activation = options.only("qk_activation", ACTIVATIONS, "silu")
    sizes = {
        "head_dim": round(width * keys) // heads,
        "expand_v": round(width * values) / round(width * keys),
        "conv_size": conv if options.take("use_short_conv", True) else 0,
        "use_gate": options.take("use_gate", False),
        "use_beta": options.take("use_beta", True),
        "allow_neg_eigval": options.take("allow_neg_eigval", False),
        "key_activation": ACTIVATIONS[activation],
        "key_norm": NORMS[options.only("qk_norm", NORMS, "l2")],
        "norm_eps": options.take("norm_eps", 1e-6),
    }
    return fla_config(options, "delta_net", sizes, heads)


def _plain_options(config: Config) -> dict[str, Any]:
    said = ("use_gate", "use_beta", "allow_neg_eigval")
    known = (*said, "head_dim", "expand_v", "conv_size", "key_activation", "key_norm")
    assumed = {**ASSUMED, "num_v_heads": None}
    values = resolved(config, only_options(config, "delta_net", known, assumed))
    keys, _, wide = widths_of(values)
    return {
        **fla_options(config, "delta_net", values),
        "num_heads": values["num_heads"],
        "expand_k": keys / config.d_model,
        "expand_v": wide / config.d_model,
        **_convolution(values),
        **{name: values[name] for name in said},
        "qk_activation": {ours: theirs for theirs, ours in ACTIVATIONS.items()}[values["key_activation"]],
        "qk_norm": {ours: theirs for theirs, ours in NORMS.items()}[values["key_norm"]],
    }


def _mixer(
    theirs: str, ours: str, sizes: Mapping[str, Any], gate: tuple[str, ...] = ("weight",)
) -> list[Weight]:
    found = heads_weights(theirs, ours, sizes, widths_of(sizes))
    found.append(same(theirs + "o_norm.weight", ours + "norm.weight"))
    if sizes["use_beta"]:
        found.append(same(theirs + "b_proj.weight", ours + "b_proj.weight"))
    if sizes["use_gate"]:
        found += [same(f"{theirs}g_proj.{part}", f"{ours}gate_proj.{part}") for part in gate]
    return found


def _decay(theirs: str, ours: str, heads: int) -> list[Weight]:
    return [
        flattened(theirs + "A_log", ours + "decay.A_log", heads),
        flattened(theirs + "dt_bias", ours + "decay.bias", heads),
    ]


def _gated_mixer(theirs: str, ours: str, sizes: Mapping[str, Any]) -> list[Weight]:
    step = same(theirs + "a_proj.weight", ours + "a_proj.weight")
    return [*_mixer(theirs, ours, sizes), step, *_decay(theirs, ours, sizes["num_v_heads"])]


def _kimi_mixer(theirs: str, ours: str, sizes: Mapping[str, Any]) -> list[Weight]:
    low_rank = [same(f"{theirs}f_proj.{n}.weight", f"{ours}f_proj.{n}.weight") for n in (0, 1)]
    gate = ("0.weight", "1.weight", "1.bias")
    return [*_mixer(theirs, ours, sizes, gate), *low_rank, *_decay(theirs, ours, sizes["num_v_heads"])]


FORMATS = (
    Format(
        "gated_deltanet",
        "GatedDeltaNetForCausalLM",
        of_type("gated_deltanet"),
        _gated,
        _gated_options,
        partial(fla_weights, mixer=_gated_mixer, layer="gated_delta_net"),
    ),
    Format(
        "kda",
        "KDAForCausalLM",
        of_type("kda"),
        _kimi,
        _kimi_options,
        partial(fla_weights, mixer=_kimi_mixer, layer="kimi_delta_attention"),
    ),
    Format(
        "delta_net",
        "DeltaNetForCausalLM",
        of_type("delta_net"),
        _plain,
        _plain_options,
        partial(fla_weights, mixer=_mixer, layer="delta_net"),
    ),
)
