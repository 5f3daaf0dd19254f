"""States that belong to a cache of transformers and are moved on where they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from linrec.donation import donation


def moved_on(state: Tensor, step: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The output of ``step(state) -> (output, next state)`` of one token from ``state [B, ...]``; the next state is
    written over the state.

    The step may do that itself. A state that lies in memory otherwise than linrec's is copied back.
    """
    if torch.compiler.is_compiling():
        o, after = step(state)
        state.copy_(after)
        return o
    with donation(state) as given:
        o, after = step(state)
    if not given.begun:
        state.copy_(after)
    return o
