"""The masks that mixers of transformers multiply their inputs with."""

from __future__ import annotations

from torch import Tensor

from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.replacement import Replacement


def apply_mask_to_padding_states(
    mixing: Mixing, hidden_states: Tensor, attention_mask: Tensor | None
) -> Tensor:
    """hidden_states ``[B, T, D]``, zero at the call's padding.

    Some models hand on a mask that is longer than what is new after a cache.
    """
    layout = mixing.layout_over(*hidden_states.shape[:2])
    if layout is None or layout.real is None:
        return hidden_states
    return hidden_states.masked_fill(~layout.real[..., None], 0)


REPLACEMENTS = (
    Replacement(
        ("apply_mask_to_padding_states",),
        (("hidden_states", "attention_mask"),),
        apply_mask_to_padding_states,
        "",
        "",
        beside=True,
    ),
)
