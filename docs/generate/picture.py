"""The matrix that a rule multiplies its values by, measured on the rule itself, and its picture.

The rule runs once for every token and channel of its values, in one batch, with that entry moved: by one where the rule
is linear in its values, so that the difference is the matrix, and by a small number otherwise, for the derivative.
"""

from __future__ import annotations

import inspect
import io
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.rule import Rule
from linrec.testing import SIZES, example_inputs

LENGTH, TOPICS = 48, 4
TOPIC = (torch.arange(LENGTH) // 4) % TOPICS  # tokens return to a few topics in turn
ONE_HEAD = {"B": 1, "H": 1, "HV": 1, "HQ": 1, "G": 1, "V": 4, "P": 4, "T": LENGTH}
VALUES = (
    "v",
    "x",
    "b_v",
    "latent",
    "shared",
)  # what plays the part of the values; else the first that carries tokens
FREE = ("a", "b")  # a transition b aᵀ of like directions would grow
CALM = {
    "log_decay": 8,
    "weak_decay": 1,
    "negative": 4,
    "logit": 2,
}  # divisors, so that decays leave something to see
GREY = "#808080"  # reads on white and on black
SMALL = 1e-5
MINI_BATCH = 12  # so that a few fit into the picture


class Mixing(NamedTuple):
    """``matrix`` ``[T, T]``; whether its signs mean something; and what it is, in a sentence."""

    matrix: Tensor
    signed: bool
    meaning: str


@cache
def mixing(rule: Rule) -> Mixing:
    """What output t takes from the values of token s."""
    inputs = picture_inputs(rule)
    name = next(
        (n for n in VALUES if n in inputs), next(n for n, a in rule.arguments.items() if a.carries_tokens)
    )
    linear = _is_affine(rule, inputs, name)
    jacobian = _jacobian(rule, inputs, name, 1.0 if linear else SMALL)
    channels = jacobian.flatten(2) if jacobian.shape[2] == jacobian.shape[3] else None
    diagonal = None if channels is None else jacobian.diagonal(dim1=2, dim2=3)
    if linear and diagonal is not None and _same(jacobian, torch.diag_embed(diagonal)):
        equal = _same(diagonal, diagonal[..., :1].expand_as(diagonal))
        of = "" if equal else " in the first channel; every channel has its own"
        meaning = (
            f"the number $M_{{ts}}$ of $o_t = \\sum_s M_{{ts}}\\, {name}_s$ (blue adds, red takes away){of}"
        )
        return Mixing(diagonal[..., 0], True, meaning)
    how = "linear" if linear else "not linear"
    meaning = (
        f"the norm of $\\partial o_t / \\partial\\, \\text{{{name}}}_s$; the output is {how} in `{name}`"
    )
    return Mixing(jacobian.square().sum((2, 3)).sqrt(), False, f"{meaning}, and mixes its channels")


def picture_inputs(rule: Rule) -> dict[str, Tensor]:
    """Example inputs of one head whose keys and queries return to a few topics, and whose decays are weak."""
    inputs = example_inputs(rule, seed=2, **{**SIZES, **ONE_HEAD})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(7)
    for name, arg in rule.arguments.items():
        x = inputs[name]
        if arg.draw in CALM:
            inputs[name] = x / CALM[arg.draw]
        elif arg.carries_tokens and name not in (*VALUES, *FREE):
            centre = torch.randn(TOPICS, x.shape[-1], generator=generator, dtype=x.dtype)
            generator.manual_seed(7)  # arguments of one width share their topics: queries find keys
            topic = 1.5 * F.normalize(centre, dim=-1)[TOPIC].reshape(
                LENGTH, *[1] * (x.dim() - 3), x.shape[-1]
            )
            mixed = topic + 0.2 * x
            inputs[name] = F.normalize(mixed, dim=-1) if arg.draw == "unit" else mixed
    return inputs


def _jacobian(rule: Rule, inputs: dict[str, Tensor], name: str, step: float) -> Tensor:
    """d o_t / d value_s ``[t, s, channels of o, channels of the value]``, by differences over one batch."""
    value = inputs[name]
    count = value[0].numel()
    moves = step * torch.eye(count, dtype=value.dtype).reshape(count, *value.shape[1:])
    up = _output(rule, inputs, name, value + moves)
    down = _output(rule, inputs, name, value - moves) if step < 1 else _output(rule, inputs, name, value)
    change = (up - down) / (2 * step if step < 1 else 1.0)
    apart = change.reshape(LENGTH, count // LENGTH, LENGTH, -1)  # [s, channel of the value, t, channel of o]
    return apart.permute(2, 0, 3, 1)


def _output(rule: Rule, inputs: dict[str, Tensor], name: str, values: Tensor) -> Tensor:
    """The output ``[count, T, ...]`` for each of ``values``; all else is the same."""
    batch = {
        n: x.expand(len(values), *x.shape[1:]) if rule.arguments[n].shapes[0][0] == "B" else x
        for n, x in inputs.items()
    }
    options = {"mini_batch": MINI_BATCH} if "mini_batch" in inspect.signature(rule.lower).parameters else {}
    return rule(**{**batch, name: values}, **options).o


def _is_affine(rule: Rule, inputs: dict[str, Tensor], name: str) -> bool:
    value = inputs[name]
    zero, once, twice = _output(rule, inputs, name, torch.cat([0 * value, value, 2 * value])).unbind(0)
    return _same(twice - once, once - zero)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 1e-6 * b.norm())


def draw(found: Mixing) -> bytes:
    """PNG: blue adds, red takes away, white is nothing; a root shows small weights beside large ones."""
    from matplotlib.figure import Figure

    shown = found.matrix.sign() * found.matrix.abs().sqrt()
    limit = float(shown.abs().quantile(0.997)) or 1.0
    shown = shown.masked_fill(torch.ones_like(shown, dtype=torch.bool).triu(1), float("nan"))
    figure = Figure(figsize=(3.5, 3.3), dpi=160)
    ax = figure.add_axes((0.12, 0.115, 0.87, 0.87))
    low, colours = (-limit, "RdBu") if found.signed else (0.0, "Blues")
    ax.imshow(shown.numpy(), cmap=colours, vmin=low, vmax=limit, interpolation="nearest")
    ax.set_xlabel("from token s", color=GREY, fontsize=8, labelpad=2)
    ax.set_ylabel("at token t", color=GREY, fontsize=8, labelpad=2)
    ax.set_xticks(range(0, LENGTH + 1, 12))
    ax.set_yticks(range(0, LENGTH + 1, 12))
    ax.tick_params(colors=GREY, labelsize=7, length=2)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
    file = io.BytesIO()
    figure.savefig(file, format="png", transparent=True, metadata={"Software": None})
    return file.getvalue()
