"""Heads apart and together are what the patterns in their docstrings say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from einops import rearrange

from linrec import layers, rules
from linrec.layers.parts import merge_heads, split_heads


def test_the_patterns_are_true() -> None:
    x = torch.randn(2, 3, 24)
    apart = split_heads(x, 4)
    assert torch.equal(apart, rearrange(x, "B T (H K) -> B T H K", H=4))
    assert torch.equal(merge_heads(apart), x)
    turned = apart.transpose(2, 3)  # no view will do
    assert torch.equal(merge_heads(turned), rearrange(turned, "B T H K -> B T (H K)"))
    assert split_heads(x[:, :0], 4).shape == (2, 0, 4, 6)


CONSTANT: dict[str, tuple[Any, torch.Tensor]] = {
    "retnet": (layers.RetNet, rules.retnet_decay(4)),
    "lightning": (layers.Lightning, rules.lightning_decay(4, 0, 1)),
    "alibi": (layers.Alibi, rules.alibi_decay(4)),
}


@pytest.mark.parametrize("name", CONSTANT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_constant_decays_are_not_rounded_with_the_weights(name: str, dtype: torch.dtype) -> None:
    kind, want = CONSTANT[name]
    layer = kind(32, 4).to(dtype)
    assert torch.equal(layer.gates(torch.zeros(1, 1, 32, dtype=dtype))["g"], want)
    assert layer(torch.randn(1, 5, 32, dtype=dtype))[0].dtype == dtype
    assert not [n for n in layer.state_dict() if "decay" in n]
