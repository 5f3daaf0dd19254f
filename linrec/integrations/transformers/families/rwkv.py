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
    k = mixer.key(torch.lerp(before, x, mixer.time_mix_key))
    v = mixer.value(torch.lerp(before, x, mixer.time_mix_value))
    r = mixer.receptance(torch.lerp(before, x, mixer.time_mix_receptance))
    w = -widened(mixer.time_decay).exp()
    memory = None if state is None else state.memory
    o, memory = rules.rwkv4(k, v, w, mixer.time_first, state=memory, cu_seqlens=cu_seqlens)
    return mixer.output(r.sigmoid() * o), TimeState(last, memory)


def channel_mixing(
    mixer: Any, x: Tensor, state: Tensor | None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """sigmoid(r) W relu(k)² of x ``[B, T, d]``; the state ``[B, d]`` is the token before."""
    before, last = token_shift(x, state, cu_seqlens)
    k = mixer.key(torch.lerp(before, x, mixer.time_mix_key))
    r = mixer.receptance(torch.lerp(before, x, mixer.time_mix_receptance))
    return r.sigmoid() * mixer.value(k.relu().square()), last


def attention_forward(
    mixing: Mixing,
    mixer: Any,
    hidden: Tensor,
    state: list[Tensor] | None = None,
    use_cache: bool = False,
) -> tuple[Tensor, list[Tensor] | None]:
    """The forward of the model's attention on hidden ``[B, T, d]``; ``state`` holds five tensors ``[B, d, layers]``,
    which are written over."""
    places = () if state is None else tuple(x.select(2, mixer.layer_id) for x in state[1:])
    before = TimeState(places[0], WKVState(*places[1:])) if places else None
    layout = mixing.layout_over(*hidden.shape[:2])
    y, after = apply(partial(time_mixing, mixer), {"x": hidden}, layout, before)
    for place, new in zip(places, (after.last, *after.memory), strict=bool(places)):
        place.copy_(new)
    return y, state


def feed_forward(
    mixing: Mixing, mixer: Any, hidden: Tensor, state: list[Tensor] | None = None
) -> tuple[Tensor, list[Tensor] | None]:
    """The forward of the model's feed-forward part on hidden ``[B, T, d]``."""
    place = None if state is None else state[0].select(2, mixer.layer_id)
    layout = mixing.layout_over(*hidden.shape[:2])
    y, after = apply(partial(channel_mixing, mixer), {"x": hidden}, layout, place)
    if place is not None:
        place.copy_(after)
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
