"""MiniMax's lightning attention.

transformers lets the state decay at padding and does not reorder it with beams. Where the first layer is such a mixer,
it takes every cache for an empty one, and masks and positions of the softmax layers come out wrong.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from torch import Tensor

from linrec import rules
from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.layout import apply
from linrec.integrations.transformers.replacement import Replacement
from linrec.layers.projection import project


def lightning_attention(
    mixer: Any, x: Tensor, state: Tensor | None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mixer on x ``[B, T, d]``; state ``[B, H, K, V]``."""
    qkv = mixer.act_fn(project(mixer.qkv_proj, x)).unflatten(-1, (mixer.num_attention_heads, -1))
    q, k, v = qkv.split(mixer.head_dim, dim=-1)
    g = -mixer.slope_rate.flatten()
    o, state = rules.lightning(q, k, v, g, state=state, cu_seqlens=cu_seqlens)
    o = project(mixer.output_gate, x).sigmoid() * mixer.norm(o.flatten(2))
    return project(mixer.out_proj, o), state


def forward(
    mixing: Mixing,
    mixer: Any,
    hidden_states: Tensor,
    position_embeddings: Any,
    attention_mask: Tensor | None,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """The mixer's own forward, of hidden_states ``[B, T, d_model]``."""
    kept, number = mixing.cache, mixer.layer_idx
    before = None if kept is None else kept.get_linear_cache(number)
    y, after = apply(partial(lightning_attention, mixer), {"x": hidden_states}, mixing.layout, before)
    if kept is not None:
        kept.set_linear_cache(number, after)
        _note(kept, number, hidden_states.shape[1])
    return y, after


def _note(kept: Any, number: int, tokens: int) -> None:
    """Have the cache know, at the mixer's place among its layers, how much it has seen."""
    while len(kept.layers) <= number:
        kept.layers.append(kept.layer_class_to_replicate())
    if not isinstance(kept.layers[number], _state_layer()):
        kept.layers[number] = _state_layer()(kept.linear_cache, number)
    kept.layers[number].seen += tokens


@cache
def _state_layer() -> type:
    from transformers.cache_utils import DynamicLayer

    class StateLayer(DynamicLayer):
        """Stands for a state in the list of a cache's states."""

        def __init__(self, states: list[Tensor], number: int):
            super().__init__()
            self.states, self.number, self.seen = states, number, 0

        def get_seq_length(self) -> int:
            return self.seen

        def reorder_cache(self, beam_idx: Tensor) -> None:
            state = self.states[self.number]
            self.states[self.number] = state.index_select(0, beam_idx.to(state.device))

    return StateLayer


REPLACEMENTS = (
    Replacement(
        ("forward",),
        (("self", "hidden_states", "position_embeddings", "attention_mask", "cache"),),
        forward,
        "lightning",
        "chunkwise, step",
        "MiniMaxLightningAttention",
    ),
)
