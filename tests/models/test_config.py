"""Configurations: what they refuse, what they suggest, and their JSON form."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from linrec import models
from linrec.errors import ConfigError
from linrec.layers import LAYERS
from linrec.models.presets import PRESETS


def test_json_round_trip() -> None:
    config = models.Config(
        pattern=("gla", "softmax_attention"),
        num_layers=5,
        mlp_ratio=None,
        layer_options={"softmax_attention": {"num_kv_heads": 2}},
        eos_token_id=256,
    )
    assert models.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.layer_names == ("gla", "softmax_attention", "gla", "softmax_attention", "gla")


def test_does_not_share_its_options_with_the_caller() -> None:
    options = {"gla": {"conv_size": 4}}
    config = models.Config(pattern=("gla",), layer_options=options)
    options["gla"]["conv_size"] = 9
    assert config.layer_options == {"gla": {"conv_size": 4}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patern": ["gla"]}, "did you mean 'pattern'"),
        ({"pattern": ["gated_deltanet"]}, "did you mean 'gated_delta_net'"),
        ({"pattern": "gla"}, "sequence of layer names"),
        ({"pattern": []}, "at least one"),
        ({"num_layers": 0}, "num_layers: expected an integer >= 1, got 0"),
        ({"d_model": 64.0}, "d_model"),
        ({"num_heads": True}, "num_heads"),
        ({"mlp_ratio": -1}, "mlp_ratio"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"eos_token_id": 257}, "eos_token_id"),
        ({"layer_options": {"gla": {"conv_sise": 4}}}, "did you mean 'conv_size'"),
        ({"layer_options": {"gla": {"d_model": 4}}}, "d_model"),
        ({"layer_options": {"glaa": {}}}, "did you mean 'gla'"),
    ],
)
def test_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.Config.from_dict(values)


def test_sizes_that_no_layer_can_have() -> None:
    with pytest.raises(ConfigError, match="softmax_attention"):
        models.LanguageModel(models.Config(d_model=8, num_heads=16, pattern=("softmax_attention",)))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_built(name: str) -> None:
    with torch.device("meta"):
        model = models.LanguageModel(models.preset(name))
    size = sum(p.numel() for p in model.parameters())
    assert 0.2e9 < size < 0.6e9 if name.startswith("medium") else size < 2e6


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="did you mean 'demo-hybrid'"):
        models.preset("demo-hybrit")


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_makes_a_model(layer: str) -> None:
    model = models.LanguageModel(models.Config(vocab_size=11, d_model=16, num_heads=2, pattern=(layer,)))
    assert model(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3, 11)
