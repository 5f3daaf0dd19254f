"""Heads apart and together are what the patterns in their docstrings say."""

from __future__ import annotations

import torch
from einops import rearrange

from linrec.layers.parts import merge_heads, split_heads


def test_the_patterns_are_true() -> None:
    x = torch.randn(2, 3, 24)
    apart = split_heads(x, 4)
    assert torch.equal(apart, rearrange(x, "B T (H K) -> B T H K", H=4))
    assert torch.equal(merge_heads(apart), x)
    turned = apart.transpose(2, 3)  # no view will do
    assert torch.equal(merge_heads(turned), rearrange(turned, "B T H K -> B T (H K)"))
    assert split_heads(x[:, :0], 4).shape == (2, 0, 4, 6)
