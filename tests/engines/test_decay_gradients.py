"""Gradients of decays in float32: as exact as those of the recurrent form, also where hardly anything crosses a token.

A rate a head (A_log, a time step's bias) sums the gradient of one decay over all tokens, so what is lost there shows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from linrec import rules
from linrec.rule import RULES, Rule
from linrec.testing import example_inputs, relative_error

DECAYS = ("log_decay", "weak_decay", "negative")
SIZES: dict[str, Any] = {"B": 1, "H": 2, "HV": 4, "K": 16, "V": 12, "G": 2, "P": 12, "N": 16, "D": 8, "J": 8}
LIMIT, TIMES = 1e-5, 4  # or times what the recurrent form is off

Gradients = dict[str, Tensor]


def decays(rule: Rule, strength: str, length: int) -> dict[str, Any]:
    """Inputs whose decays are weak, strong, or mostly weak with strong ones and resets among them."""
    x = example_inputs(rule, T=length, **SIZES)
    noise = torch.Generator().manual_seed(1)
    for name, arg in rule.arguments.items():
        if arg.draw not in DECAYS:
            continue
        if strength == "weak":
            x[name] = x[name] / 64
        elif strength == "strong":
            x[name] = 12 * x[name] - 4
        else:
            drawn = torch.randn(x[name].shape, generator=noise, dtype=torch.float64)
            strong = torch.rand(x[name].shape, generator=noise) < 0.1
            x[name] = -(2 * drawn - 1).exp() * torch.where(strong, 10, 1)
    return {name: tensor.float() for name, tensor in x.items()}


def gradients(rule: Rule, inputs: dict[str, Any], form: str, dtype: torch.dtype, **options: Any) -> Gradients:
    """Of decays, and of what they would be multiplied with: sums over all tokens of g dg, and of dg."""
    x = {name: tensor.to(dtype, copy=True).requires_grad_() for name, tensor in inputs.items()}
    o = getattr(rule, form)(**x, **options).o
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (o * weight.to(o.dtype)).sum().backward()
    found = {}
    for name, arg in rule.arguments.items():
        g, axes = x[name], arg.shape_for(x[name].dim())
        if arg.draw not in DECAYS:
            continue
        assert g.grad is not None and axes is not None
        found[name] = g.grad
        if "T" in axes:
            over = [i for i, axis in enumerate(axes) if axis in "BT"]
            found["sum of " + name] = g.grad.double().sum(over)
            found["rate of " + name] = (g.detach().double() * g.grad.double()).sum(over)
    return found


def errors(got: Gradients, right: Gradients) -> dict[str, float]:
    return {name: relative_error(got[name], x) for name, x in right.items()}


def check(rule: Rule, strength: str, length: int, form: str = "chunkwise", **options: Any) -> None:
    x = decays(rule, strength, length)
    right = gradients(rule, x, "recurrent", torch.float64)
    loop = errors(gradients(rule, x, "recurrent", torch.float32), right)
    found = errors(gradients(rule, x, form, torch.float32, **options), right)
    wrong = {name: e for name, e in found.items() if not e <= max(LIMIT, TIMES * loop[name])}
    assert right and not wrong, f"{wrong}, recurrent: {loop}"


PATHS = [
    rules.mamba2,  # one decay a head, additive
    rules.gated_delta_net,
    rules.comba,
    rules.rwkv5,  # reads before the decay
    rules.mlstm,
    rules.gla,  # a decay a channel
    rules.kimi_delta_attention,
    rules.rwkv6,
    rules.rwkv7,  # keys of their own
    rules.mamba,  # elementwise
    rules.hgrn,
]
# Titans' loss grows without bound under weak decays, in float64 too.
OTHERS = [rule for rule in RULES.values() if rule not in [*PATHS, rules.titans]]
OTHERS = [rule for rule in OTHERS if any(arg.draw in DECAYS for arg in rule.arguments.values())]


@pytest.mark.parametrize("strength", ["weak", "strong", "mixed"])
@pytest.mark.parametrize("rule", PATHS, ids=lambda rule: rule.name)
def test_decays_have_the_gradients_of_float64(rule: Rule, strength: str) -> None:
    check(rule, strength, 512)


@pytest.mark.parametrize("algorithm", ["parallel", "chunkwise_plain", "chunkwise_general"])
@pytest.mark.parametrize("rule", [rules.gated_delta_net, rules.gla, rules.rwkv7], ids=lambda rule: rule.name)
def test_every_algorithm_has_them(rule: Rule, algorithm: str) -> None:
    form = "parallel" if algorithm == "parallel" else "chunkwise"
    check(rule, "strong", 256, form, backend=algorithm)


@pytest.mark.slow
@pytest.mark.parametrize("strength", ["weak", "strong", "mixed"])
@pytest.mark.parametrize("rule", OTHERS, ids=lambda rule: rule.name)
def test_every_rule_has_them(rule: Rule, strength: str) -> None:
    check(rule, strength, 512)


@pytest.mark.slow
@pytest.mark.parametrize("strength", ["weak", "strong", "mixed"])
@pytest.mark.parametrize("rule", [rules.mamba2, rules.gated_delta_net, rules.gla], ids=lambda rule: rule.name)
def test_long_sequences_have_them(rule: Rule, strength: str) -> None:
    check(rule, strength, 2048)
