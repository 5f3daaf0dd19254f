"""The states of a trie's nodes, kept until their children have used them, within a bound on their bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from linrec.state import State, state_bytes


class KeptStates:
    """States by key; over ``max_bytes`` the least recently used go, and whoever needs one computes it again."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes, self.peak_bytes = max_bytes, 0, 0
        self._states: OrderedDict[Hashable, State] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: Hashable) -> State:
        """The state, or None if it is not (or no longer) kept."""
        if key not in self._states:
            return None
        self._states.move_to_end(key)
        return self._states[key]

    def put(self, key: Hashable, state: State) -> None:
        """Keep a state, unless it alone is over the bound. It must own its memory: a view holds more."""
        self.drop(key)
        size = state_bytes(state)
        if size > self.max_bytes:
            return
        self._states[key] = state
        self.bytes += size
        while self.bytes > self.max_bytes:
            _, gone = self._states.popitem(last=False)
            self.bytes -= state_bytes(gone)
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def drop(self, key: Hashable) -> None:
        """Forget a state that nobody needs any more."""
        if key in self._states:
            self.bytes -= state_bytes(self._states.pop(key))

    def has_room_for(self, count: int) -> bool:
        """Whether ``count`` more states of the present average size fit."""
        mean = self.bytes / len(self._states) if self._states else 0.0
        return self.bytes + count * mean <= self.max_bytes
