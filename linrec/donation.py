"""Who may write over a recurrent state: the one call that was given it, and no other.

A new state a token costs more time than the arithmetic on it, so a decoding loop that never looks at the state before
gives it away, and a step writes the next state over it. What was given away is a property of the block around the
call: neither another thread nor another asyncio task sees it.
"""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import Tensor

from linrec.state import State, named_tensors


class Donation:
    """What a block gives away. ``begun``: some of it may have been written over, so what was given is gone.

    Given away is all that one-token calls are handed (``everything``), or the tensors of one state: those that are
    dense and have their memory to themselves, since writing over a view would change what others hold.
    """

    def __init__(self, state: State = None, everything: bool = False):
        self.begun = False
        self._everything = everything
        self._given: dict[int, Tensor] = {}  # by address; held, so that no other tensor can come to lie there
        self._outer: Donation | None = None
        if state is not None:
            self._give(state)

    def _give(self, state: State) -> None:
        shared = set()
        for _, x in named_tensors(state):
            storage = x.untyped_storage()
            address = storage.data_ptr()
            if address in self._given or storage.nbytes() != x.nbytes or not x.is_contiguous():
                shared.add(address)
            self._given[address] = x
        for address in shared:
            del self._given[address]

    def __enter__(self) -> Donation:
        self._outer = _current.get()
        _current.set(self)
        return self

    def __exit__(self, *failure: object) -> None:
        _current.set(self._outer)

    def take(self, state: Tensor) -> bool:
        """Whether ``state [...]`` may be written over now; then the block counts as begun."""
        free = state.is_contiguous() and not (state.is_inference() and not torch.is_inference_mode_enabled())
        if free and (self._everything or (self._given and state.untyped_storage().data_ptr() in self._given)):
            self.begun = True
            return True
        return False


_current: ContextVar[Donation | None] = ContextVar("linrec.donation", default=None)


def taken(state: Tensor) -> bool:
    """Whether the next state may be written over ``state [...]``, which the caller then does: it has been given
    away."""
    if torch.compiler.is_compiling():
        return False
    donation = _current.get()
    return donation is not None and donation.take(state)


def donation(state: State = True) -> Donation:
    """Within the block, a call of one token may write the next state over the state that it is given.

    ``state``: the state that is given away, and no other; True (the default) for loops that own every state they pass,
    False for nothing. Where gradients are on, nothing is overwritten. Holds for the calling thread and asyncio task.
    """
    return Donation(None if isinstance(state, bool) else state, everything=state is True)
