"""The short convolution of every mixer of transformers that has one; for LFM2 it is the mixer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from linrec.engines.convolution import causal_convolution
from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.layout import Layout, apply
from linrec.integrations.transformers.replacement import Replacement


def causal_conv1d_fn(
    mixing: Mixing,
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **others: Any,
) -> Tensor:
    """hidden_states ``[B, D, P + T]`` -> ``[B, D, T]``, weight ``[D, W]``, bias ``[D]``: the P inputs before the
    call's T tokens come from a cache.

    A cache holds by then the last inputs of each row, padding or not; with padding or packing it gets those that the
    next token will meet.
    """
    inputs = hidden_states.mT
    given = mixing.given.get("hidden_states")
    before = 0 if given is None else inputs.shape[1] - given.shape[1]
    history = last_inputs(inputs[:, :before], weight.shape[1] - 1)
    y, after = convolved(inputs[:, before:], history, weight, bias, activation, mixing.layout)
    layer = mixing.cached_layer
    if layer is not None and mixing.layout is not None and not layer.record_past:
        keep(layer.conv_states[getattr(mixing.module, "conv_idx", 0)], after)
    return y.mT


def causal_conv1d_update(
    mixing: Mixing,
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """One token, hidden_states ``[B, D, 1]``; conv_state ``[B, D, W or more]``, the inputs before it, is moved on in
    place.

    weight ``[D, W]``, bias ``[D]``.
    """
    history = last_inputs(conv_state.mT, weight.shape[1] - 1)
    y, after = convolved(hidden_states.mT, history, weight, bias, activation, mixing.layout)
    keep(conv_state, after)
    return y.mT


def convolved(
    x: Tensor,
    history: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    layout: Layout | None,
) -> tuple[Tensor, Tensor]:
    """x ``[B, T, D]``, weight ``[D, W]``, bias ``[D]``, history ``[B, W - 1, D]`` -> y like x, and the last inputs."""
    silu = activation in ("silu", "swish")
    y, after = apply(
        causal_convolution, {"x": x.to(weight.dtype)}, layout, history, weight=weight, bias=bias, silu=silu
    )
    if activation is not None and not silu:
        from transformers.activations import ACT2FN

        y = ACT2FN[activation](y)
    return y.to(x.dtype), after


def last_inputs(inputs: Tensor, count: int) -> Tensor:
    """The last inputs ``[B, count, D]``, zeros where there are fewer."""
    last = inputs[:, max(inputs.shape[1] - count, 0) :]
    return last if last.shape[1] == count else F.pad(last, (0, 0, count - last.shape[1], 0))


def keep(conv_state: Tensor, inputs: Tensor) -> None:
    """conv_state ``[B, D, W or more]`` of a cache from the last inputs ``[B, W - 1, D]``; older ones meet no token."""
    conv_state[..., conv_state.shape[-1] - inputs.shape[1] :].copy_(inputs.mT)


_CONVOLUTION = ("weight", "bias", "activation")

REPLACEMENTS = (
    Replacement(
        ("causal_conv1d_fn",),
        (("hidden_states", *_CONVOLUTION),),
        causal_conv1d_fn,
        "short convolution",
        "chunkwise",
    ),
    Replacement(
        ("causal_conv1d_update",),
        (("hidden_states", "conv_state", *_CONVOLUTION),),
        causal_conv1d_update,
        "short convolution",
        "step",
    ),
)
