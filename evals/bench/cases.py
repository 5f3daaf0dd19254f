"""What is timed against what, at which shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from linrec import rules
from linrec.evals.bench import peers
from linrec.rule import Rule

Inputs = dict[str, Tensor]


class Case(NamedTuple):
    """A rule and its peer on the same tensors. ``check`` False: another function, timed beside it (softmax)."""

    name: str
    rule: Rule
    peer: str
    theirs: Callable[..., Tensor]
    make: Callable[[int], Inputs]
    length: int
    shape: str
    check: bool = True

    def ours(self, *inputs: Tensor) -> Tensor:
        """The rule's default form."""
        return self.rule(*inputs).o


def delta_inputs(length: int, heads: int = 16, width: int = 128, channel: bool = False) -> Inputs:
    """q, k of unit norm, v, log-decays in (-1, 0), strengths in (0, 1)."""
    draw = partial(_normal(), 1, length, heads)
    g = F.logsigmoid(draw(width) + 3 if channel else draw() + 3)
    q, k = (F.normalize(draw(width), dim=-1) for _ in range(2))
    return {"q": q, "k": k, "v": draw(width), "g": g, "beta": draw().sigmoid()}


def mamba2_inputs(length: int, heads: int = 24, width: int = 64, states: int = 128) -> Inputs:
    """The published sizes of the 130M model: one group."""
    draw = partial(_normal(), 1, length)
    return {
        "x": draw(heads, width),
        "dt": F.softplus(draw(heads) - 4),
        "A": -torch.arange(1.0, heads + 1),
        "B": draw(1, states),
        "C": draw(1, states),
        "D": torch.ones(heads),
    }


def mamba_inputs(length: int, width: int = 1536, states: int = 16) -> Inputs:
    """The published sizes of the 130M model."""
    draw = partial(_normal(), 1, length)
    return {
        "x": draw(width),
        "dt": F.softplus(draw(width) - 4),
        "A": -torch.arange(1.0, states + 1).repeat(width, 1),
        "B": draw(states),
        "C": draw(states),
        "D": torch.ones(width),
    }


def _normal() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


CASES = (
    Case(
        "gated_delta_net",
        rules.gated_delta_net,
        "transformers",
        peers.gated_delta,
        delta_inputs,
        4096,
        "H=16, K=V=128",
    ),
    Case(
        "kimi_delta_attention",
        rules.kimi_delta_attention,
        "transformers",
        peers.kimi_delta,
        lambda length: delta_inputs(length, channel=True),
        1024,
        "H=16, K=V=128",
    ),
    Case(
        "mamba2",
        rules.mamba2,
        "transformers",
        peers.mamba2,
        mamba2_inputs,
        4096,
        "24 heads, P=64, N=128, one group",
    ),
    Case("mamba", rules.mamba, "transformers", peers.mamba, mamba_inputs, 2048, "D=1536, N=16"),
    Case(
        "gated_delta_net (softmax)",
        rules.gated_delta_net,
        "scaled_dot_product_attention",
        peers.softmax,
        delta_inputs,
        4096,
        "H=16, K=V=128",
        check=False,
    ),
)
