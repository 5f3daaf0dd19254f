"""The masks that mixers of transformers multiply their inputs with."""

from __future__ import annotations

from torch import Tensor

from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.replacement import Replacement


def apply_mask_to_padding_states(
    mixing: Mixing, hidden_states: Tensor, attention_mask: Tensor | None
) -> Tensor:
    """hidden_states ``[B, T, D]`` as they are: padding is left out where tokens meet.

    Some models hand on a mask that is longer than what is new after a cache, so that multiplying with it is wrong.
    """
    return hidden_states


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
