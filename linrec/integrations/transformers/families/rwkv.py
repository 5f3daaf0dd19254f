"""RWKV-4's time mixing and channel mixing.

Both mix each token with the one before. transformers does that wrongly for one token of several rows, across documents
that are packed, and next to padding.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linrec import rules
from linrec.engines.wkv import WKVState
from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.layout import apply
from linrec.integrations.transformers.replacement import Replacement
from linrec.layers.parts import widened
from linrec.layers.projection import project
from linrec.layers.shift import token_shift


class TimeState(NamedTuple):
    """last ``[B, d]``, the token before; memory, the rule's sums."""

    last: Tensor
    memory: WKVState


def time_mixing(
    mixer: Any, x: Tensor, state: TimeState | None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, TimeState]:
    """sigmoid(r) wkv(k, v), projected, of x ``[B, T, d]``; k, v and r are maps of mixtures with the token before."""
    before, last = token_shift(x, None if state is None else state.last, cu_seqlens)
    k = project(mixer.key, torch.lerp(before, x, mixer.time_mix_key))
    v = project(mixer.value, torch.lerp(before, x, mixer.time_mix_value))
    r = project(mixer.receptance, torch.lerp(before, x, mixer.time_mix_receptance))
    w = -widened(mixer.time_decay).exp()
    memory = None if state is None else state.memory
    o, memory = rules.rwkv4(k, v, w, mixer.time_first, state=memory, cu_seqlens=cu_seqlens)
    return project(mixer.output, r.sigmoid() * o), TimeState(last, memory)


def channel_mixing(
    mixer: Any, x: Tensor, state: Tensor | None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """sigmoid(r) W relu(k)² of x ``[B, T, d]``; the state ``[B, d]`` is the token before."""
    before, last = token_shift(x, state, cu_seqlens)
    k = project(mixer.key, torch.lerp(before, x, mixer.time_mix_key))
    r = project(mixer.receptance, torch.lerp(before, x, mixer.time_mix_receptance))
    return r.sigmoid() * project(mixer.value, k.relu().square()), last


def attention_forward(
    mixing: Mixing,
    mixer: Any,
    hidden: Tensor,
    state: list[Tensor] | None = None,
    use_cache: bool = False,
) -> tuple[Tensor, list[Tensor] | None]:
    """The forward of the model's attention on hidden ``[B, T, d]``; ``state`` holds five tensors ``[B, d, layers]``,
    which are written over."""
    before, number = None, mixer.layer_id
    if state is not None:
        last, *memory = (x.select(2, number) for x in state[1:])
        before = TimeState(last, WKVState(*memory))
    layout = mixing.layout_over(*hidden.shape[:2])
    y, after = apply(partial(time_mixing, mixer), {"x": hidden}, layout, before)
    if state is not None:
        for place, new in zip(state[1:], (after.last, *after.memory), strict=True):
            place.select(2, number).copy_(new)
    return y, state


def feed_forward(
    mixing: Mixing, mixer: Any, hidden: Tensor, state: list[Tensor] | None = None
) -> tuple[Tensor, list[Tensor] | None]:
    """The forward of the model's feed-forward part on hidden ``[B, T, d]``."""
    before, number = None, mixer.layer_id
    if state is not None:
        before = state[0].select(2, number)
    layout = mixing.layout_over(*hidden.shape[:2])
    y, after = apply(partial(channel_mixing, mixer), {"x": hidden}, layout, before)
    if state is not None:
        state[0].select(2, number).copy_(after)
    return y, state


REPLACEMENTS = (
    Replacement(
        ("forward",),
        (("self", "hidden", "state", "use_cache"),),
        attention_forward,
        "rwkv4",
        "chunkwise, step",
        "RwkvSelfAttention",
    ),
    Replacement(
        ("forward",), (("self", "hidden", "state"),), feed_forward, "token_shift", "shift", "RwkvFeedForward"
    ),
)
