"""Mamba-2 as transformers and as its authors publish it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from linrec.errors import CheckpointError
from linrec.models.config import Config
from linrec.models.formats.backbone import (
    AUTHORS,
    TRANSFORMERS,
    authors_config,
    authors_options,
    backbone_weights,
    is_authors,
    mixer_weights,
    transformers_config,
    transformers_options,
)
from linrec.models.formats.format import Format, layer_values, of_type, only_layer
from linrec.models.formats.options import Names, Options, said
from linrec.models.formats.weights import Weight, reshaped

UNLIMITED = [0.0, float("inf")]
HERE: Names = {**TRANSFORMERS, "state_size": ("state_size", 128), "num_groups": ("n_groups", 8)}
THERE: Names = {**AUTHORS, "state_size": ("d_state", 128), "num_groups": ("ngroups", 1)}
TRAINING = ("time_step_rank", "time_step_min", "time_step_max", "time_step_floor", "chunk_size")


def _limit(value: Any) -> list[float] | None:
    return None if list(value) == UNLIMITED else list(value)


def _config(options: Options) -> Config:
    heads = options.whole("num_heads", 128)
    options.only("head_dim", (_head_dim(options.values, heads),), 64, " with these num_heads")
    sizes = options.sizes(HERE)
    sizes["norm_eps"] = options.take("layer_norm_epsilon", 1e-5)
    sizes["time_step_limit"] = _limit(options.take("time_step_limit", UNLIMITED))
    options.without_effect(*TRAINING)
    return transformers_config(options, "mamba2", sizes, tied=False, heads=heads)


def _head_dim(values: Mapping[str, Any], heads: int) -> int:
    return int(values.get("expand", 2) * values.get("hidden_size", 0)) // heads


def _options(config: Config) -> dict[str, Any]:
    sizes = _sizes(config)
    if sizes["norm_eps"] != config.norm_eps:
        raise CheckpointError("mamba2: one layer_norm_epsilon stands for all norms, this model has two")
    return {
        **transformers_options(config, "mamba2"),
        "num_heads": sizes["num_heads"],
        "head_dim": int(sizes["expand"] * config.d_model) // sizes["num_heads"],
        **said(sizes, HERE),
        "time_step_limit": sizes["time_step_limit"] or UNLIMITED,
    }


def _authors(options: Options) -> Config:
    own = Options(options.take("ssm_cfg"), f"{options.where}: ssm_cfg")
    own.only("layer", ("Mamba2",), "Mamba2")
    own.only("rmsnorm", (True,), True)
    own.only("norm_before_gate", (False,), False)
    own.only("D_has_hdim", (False,), False)
    sizes, head_dim = own.sizes(THERE), own.whole("headdim", 64)
    channels = int(sizes["expand"] * options.whole("d_model"))
    own.only("d_ssm", (None, channels), None)
    sizes["time_step_limit"] = _limit(own.take("dt_limit", UNLIMITED))
    own.without_effect("chunk_size", "dt_min", "dt_max", "dt_init_floor", "A_init_range", "use_mem_eff_path")
    own.finish()
    return authors_config(options, "mamba2", sizes, heads=channels // head_dim)


def _authors_options(config: Config) -> dict[str, Any]:
    sizes = _sizes(config)
    if sizes["norm_eps"] != 1e-5:
        raise CheckpointError("mamba2-authors: expected norms with an eps of 1e-05")
    width = int(sizes["expand"] * config.d_model) // sizes["num_heads"]
    own = {"layer": "Mamba2", "headdim": width, **said(sizes, THERE)}
    if sizes["time_step_limit"] is not None:
        own["dt_limit"] = sizes["time_step_limit"]
    return {**authors_options(config), "ssm_cfg": own}


def _sizes(config: Config) -> dict[str, Any]:
    only_layer(config, "mamba2")
    return layer_values(config, "mamba2")


def _mixer(theirs: str, ours: str, sizes: Mapping[str, Any]) -> list[Weight]:
    return [
        *mixer_weights(theirs, ours, sizes, ("in_proj.weight", "D", "norm.weight", "out_proj.weight")),
        reshaped(theirs + "A_log", ours + "decay.A_log", (-1,), (-1, 1)),
        reshaped(theirs + "dt_bias", ours + "decay.bias", (-1,), (-1, 1)),
    ]


def _weights(config: Config, embedding: str) -> list[Weight]:
    return backbone_weights(config, _mixer, layer_values(config, "mamba2"), embedding)


FORMATS = (
    Format(
        "mamba2",
        "Mamba2ForCausalLM",
        of_type("mamba2"),
        _config,
        _options,
        partial(_weights, embedding="embeddings"),
    ),
    Format(
        "mamba2-authors",
        None,
        lambda values: is_authors(values) and values["ssm_cfg"].get("layer") == "Mamba2",
        _authors,
        _authors_options,
        partial(_weights, embedding="embedding"),
    ),
)
