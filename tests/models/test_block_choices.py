"""Norms, MLPs, multipliers and the cap of logits, against their equations and the modules of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from linrec.errors import CheckpointError, ConfigError
from linrec.layers.parts import OffsetRMSNorm
from linrec.models import Config, LanguageModel
from linrec.models.blocks import Block
from linrec.models.loading import convert
from linrec.models.mlp import GATED, PLAIN, make_mlp

SIZES: dict[str, Any] = {"vocab_size": 31, "d_model": 16, "num_layers": 2, "num_heads": 2}
CHOICES: list[dict[str, Any]] = [
    {"norm": "rms_offset", "mlp": "geglu_tanh", "mlp_bias": True, "mlp_size": 13},
    {"norm": "layer", "mlp": "relu2", "mlp_size": 21},
    {"embed_scale": 4.0, "residual_scale": 0.25, "logit_scale": 0.5, "logit_cap": 0.3},
]
ERF, ROOT = torch.special.erf, 2**0.5


def activated(kind: str, x: Tensor) -> Tensor:
    if kind in ("swiglu", "silu"):
        return x / (1 + (-x).exp())
    if kind in ("geglu", "gelu"):
        return x * (1 + ERF(x / ROOT)) / 2
    if kind in ("geglu_tanh", "gelu_tanh"):
        return x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2
    return torch.where(x > 0, x * x, 0)


@pytest.mark.parametrize("kind", [*GATED, *PLAIN])
@pytest.mark.parametrize("bias", [False, True])
def test_mlps_are_their_equations(kind: str, bias: bool) -> None:
    mlp = make_mlp(kind, 5, 7, bias).double()
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    weights = mlp.state_dict()

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))

    inner = (
        activated(kind, linear("gate", x)) * linear("up", x)
        if kind in GATED
        else activated(kind, linear("up", x))
    )
    torch.testing.assert_close(mlp(x), linear("down", inner), rtol=0, atol=1e-12)
    assert any(name.endswith("bias") for name in weights) is bias


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_offset_norm_is_that_of_qwen3_next(dtype: torch.dtype) -> None:
    modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    theirs, ours = modeling.Qwen3NextRMSNorm(24, eps=1e-3), OffsetRMSNorm(24, eps=1e-3)
    weight = torch.randn(24).to(dtype)
    for norm in (theirs, ours):
        norm.weight.data = weight
    for shape in ((1, 1, 24), (2, 3, 24)):
        x = torch.randn(shape).to(dtype)
        wide = x.double()
        exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt() * (1 + weight.double())
        near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(ours(x).double(), exact, rtol=near, atol=near)
        if dtype is not torch.float64:  # theirs computes in float32
            torch.testing.assert_close(ours(x), theirs(x))


def test_mlp_is_that_of_recurrent_gemma() -> None:
    modeling = pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    config = modeling.RecurrentGemmaConfig(hidden_size=8, intermediate_size=24)
    theirs, ours = modeling.RecurrentGemmaMlp(config), make_mlp("geglu_tanh", 8, 12, True)
    ours.load_state_dict({name.replace("_proj", ""): value for name, value in theirs.state_dict().items()})
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_multipliers_and_cap() -> None:
    plain = LanguageModel(Config(**SIZES)).double().eval()
    scaled = LanguageModel(Config(**SIZES, **CHOICES[2])).double().eval()
    scaled.load_state_dict(plain.state_dict())
    tokens = torch.randint(31, (2, 6))
    x = plain.embed(tokens) * 4
    for block in plain.blocks:
        assert isinstance(block, Block)
        x = x + block.mixer(block.mixer_norm(x))[0] / 4
        x = x + block.mlp(block.mlp_norm(x)) / 4
    expected = 0.3 * torch.tanh(plain.head(plain.norm(x)) / 2 / 0.3)
    torch.testing.assert_close(scaled(tokens).logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("choice", CHOICES)
def test_streams_is_saved_and_refused_where_a_format_cannot_say_it(
    choice: dict[str, Any], tmp_path: Path
) -> None:
    config = Config(**SIZES, **choice, pattern=("mamba2",), mlp_ratio=None)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    model = LanguageModel(config).eval()
    tokens = torch.randint(31, (2, 7))
    whole, first = model(tokens).logits, model(tokens[:, :6])
    torch.testing.assert_close(
        model.step(tokens[:, 6:], first.state).logits, whole[:, 6:], rtol=1e-4, atol=1e-5
    )
    model.save(tmp_path / "ours")
    loaded = LanguageModel.load(tmp_path / "ours")
    assert loaded.fingerprint() == model.fingerprint()
    assert torch.equal(loaded(tokens).logits, whole)
    with pytest.raises(CheckpointError, match=r"cannot be said|expected a model of"):
        convert(LanguageModel, tmp_path / "ours", tmp_path / "theirs", "mamba2")


def test_every_parameter_gets_a_gradient() -> None:
    for choice in CHOICES:
        model = LanguageModel(Config(**SIZES, **choice))
        model(torch.randint(31, (2, 5))).logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_exact_width() -> None:
    assert Config(mlp_size=13, mlp_ratio=None).mlp_width == 13
    assert LanguageModel(Config(**SIZES, mlp_size=13)).state_dict()["blocks.0.mlp.up.weight"].shape == (
        13,
        16,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        *({"mlp_size": size} for size in (0, -1, 2.0, True, 2**31)),
        *(
            {name: value}
            for name in ("embed_scale", "residual_scale", "logit_scale")
            for value in (0, None, "1")
        ),
        *({"logit_cap": value} for value in (0, -1.0, float("inf"), "30")),
        {"mlp_bias": 1},
        {"mlp_bias": True, "mlp": "rwkv"},
        {"norm": "rms_plus"},
        {"mlp": "swish"},
    ],
)
def test_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Config(**wrong)


def test_usual_choices_are_not_written() -> None:
    values = Config(**SIZES).to_dict()
    assert list(values)[-1] == "pad_token_id"
    assert Config(**SIZES, norm="layer", logit_cap=30.0).to_dict() == {
        **values,
        "norm": "layer",
        "logit_cap": 30.0,
    }
