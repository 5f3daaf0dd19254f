"""Mamba as transformers and as its authors publish it, and FalconMamba."""

from __future__ import annotations

import math
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
from linrec.models.formats.options import Options, said
from linrec.models.formats.weights import Weight, same

TRAINING = (
    *("time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor"),
    *("use_mambapy", "use_associative_scan", "intermediate_size", "use_falcon_mambapy"),
)


def _rank(value: Any, width: int) -> int:
    return math.ceil(width / 16) if value in ("auto", None) else value


def _config(options: Options, falcon: bool = False) -> Config:
    sizes = options.sizes(TRANSFORMERS)
    sizes["step_rank"] = _rank(options.take("time_step_rank", "auto"), options.whole("hidden_size"))
    if falcon:
        sizes["inner_norm_eps"] = options.take("mixer_rms_eps", 1e-6)
    options.without_effect(*TRAINING)
    return transformers_config(options, "mamba", sizes, tied=True)


def _options(config: Config, falcon: bool = False) -> dict[str, Any]:
    sizes = _sizes(config, falcon)
    more = {"mixer_rms_eps": sizes["inner_norm_eps"]} if falcon else {}
    return {
        **transformers_options(config, "falcon_mamba" if falcon else "mamba"),
        **said(sizes, TRANSFORMERS),
        "time_step_rank": _rank(sizes["step_rank"], config.d_model),
        **more,
    }


def _authors(options: Options) -> Config:
    own = Options(options.take("ssm_cfg"), f"{options.where}: ssm_cfg")
    own.only("layer", ("Mamba1",), "Mamba1")
    sizes = own.sizes(AUTHORS)
    sizes["step_rank"] = _rank(own.take("dt_rank", "auto"), options.whole("d_model"))
    own.without_effect("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path")
    own.finish()
    return authors_config(options, "mamba", sizes)


def _authors_options(config: Config) -> dict[str, Any]:
    sizes = _sizes(config, False)
    rank = _rank(sizes["step_rank"], config.d_model)
    own = {"layer": "Mamba1", "dt_rank": rank, **said(sizes, AUTHORS)}
    return {**authors_options(config), "ssm_cfg": own}


def _sizes(config: Config, falcon: bool) -> dict[str, Any]:
    only_layer(config, "mamba")
    sizes = layer_values(config, "mamba")
    if (sizes["inner_norm_eps"] is not None) is not falcon:
        raise CheckpointError("inner_norm_eps is what FalconMamba has, and Mamba has not")
    return sizes


def _mixer(theirs: str, ours: str, sizes: Mapping[str, Any]) -> list[Weight]:
    names = ("in_proj.weight", "x_proj.weight", "A_log", "D", "out_proj.weight")
    step = [same(f"{theirs}dt_proj.{part}", f"{ours}step_proj.{part}") for part in ("weight", "bias")]
    return [*mixer_weights(theirs, ours, sizes, names), *step]


def _weights(config: Config, embedding: str) -> list[Weight]:
    return backbone_weights(config, _mixer, layer_values(config, "mamba"), embedding)


FORMATS = (
    Format(
        "mamba",
        "MambaForCausalLM",
        of_type("mamba"),
        _config,
        _options,
        partial(_weights, embedding="embeddings"),
    ),
    Format(
        "falcon_mamba",
        "FalconMambaForCausalLM",
        of_type("falcon_mamba"),
        partial(_config, falcon=True),
        partial(_options, falcon=True),
        partial(_weights, embedding="embeddings"),
    ),
    Format(
        "mamba-authors",
        None,
        lambda values: is_authors(values) and values["ssm_cfg"].get("layer", "Mamba1") == "Mamba1",
        _authors,
        _authors_options,
        partial(_weights, embedding="embedding"),
    ),
)
