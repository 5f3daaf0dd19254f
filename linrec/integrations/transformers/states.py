"""States that belong to a cache of transformers and are moved on where they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from linrec.donation import donation


def moved_on(state: Tensor, step: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The output of ``step(state) -> (output, next state)`` of one token from ``state [B, ...]``; the next state is
    written over the state.

    The step may do that itself, in whatever else it makes of the state as well. A next state that lies elsewhere is
    copied back.
    """
    if torch.compiler.is_compiling():
        o, after = step(state)
        state.copy_(after)
        return o
    with donation():  # the step is handed nothing that is not written over in any case
        o, after = step(state)
    if after.data_ptr() != state.data_ptr() or after.stride() != state.stride():
        state.copy_(after)
    return o
