"""A model over a prefix trie: every node is read once, from its parent's state, many nodes side by side.

A state is a value, so a fork is another reference to it; rows are copied only into the batch that continues
them, and only nodes with children leave a state behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from linrec.evals.kept_states import KeptStates
from linrec.evals.prefix_trie import Node, PrefixTrie
from linrec.models.language_model import LanguageModel
from linrec.state import State, map_tensors, select_rows, stack_rows


class Visitor(Protocol):
    """What is done with what the model reads."""

    def read(self, nodes: Sequence[Node], offset: int, h: Tensor) -> None:
        """``h [N, T, D]``: row n holds node n's tokens from its own token ``offset`` on, then padding."""

    def arrived(self, node: Node, h: Tensor, state: State) -> None:
        """A wanted node's last token: ``h [D]`` and the state behind it, of one row."""


class PrefixWalk:
    """Reads tries.

    Args:
        model: its ``hidden`` is called, never its head.
        batch_size: inner nodes side by side. Leaves, which are short where they are many, run four times as
            many; no call takes more than ``batch_size * chunk`` tokens.
        chunk: tokens of a row per call.
        max_state_bytes: bound on the states kept for later. Under it the walk goes level by level,
            where batches are fullest; near it down to the leaves, so that states are used up.
    """

    def __init__(
        self, model: LanguageModel, batch_size: int = 8, chunk: int = 1024, max_state_bytes: int = 2**30
    ) -> None:
        self.model, self.batch_size, self.chunk = model, batch_size, chunk
        self.kept = KeptStates(max_state_bytes)
        self.device = next(model.parameters()).device
        self.tokens_processed = 0
        self._nothing: State = None

    def run(self, trie: PrefixTrie, visitor: Visitor, wanted: Collection[Node] = ()) -> Iterable[int]:
        """Read the whole trie and yield the tokens of each batch done; ``wanted`` nodes also arrive."""
        wanted = set(wanted)
        ready = _Ready(wanted)
        unread = {node: len(node.children) for node in trie.nodes}
        ready.add(trie.roots)
        while batch := ready.take(self.batch_size, self.chunk, self.kept):
            parents = self._states([n.parent for n in batch if n.parent is not None])
            origins = [None if n.parent is None else parents[n.parent] for n in batch]
            keep = any(n.children or n in wanted for n in batch)
            states = self._advance(batch, origins, keep, visitor, wanted)
            for node in batch:
                ready.add(node.children)
                if node.children:
                    self.kept.put(node, states[node])
                if node.parent is not None:
                    unread[node.parent] -= 1
                    if not unread[node.parent]:
                        self.kept.drop(node.parent)
            yield sum(map(len, batch))

    def _states(self, nodes: Iterable[Node]) -> dict[Node, State]:
        """The states behind these nodes; what is no longer kept is read again from the nearest that is."""
        found = {node: self.kept.get(node) for node in dict.fromkeys(nodes)}
        missing = sorted((n for n, s in found.items() if s is None), key=len, reverse=True)
        for start in range(0, len(missing), self.batch_size):
            again = missing[start : start + self.batch_size]
            above = self._states([n.parent for n in again if n.parent is not None])
            states = self._advance(
                again, [None if n.parent is None else above[n.parent] for n in again], True
            )
            found.update(states)
            for node, state in states.items():
                self.kept.put(node, state)
        return found

    def _advance(
        self,
        nodes: Sequence[Node],
        origins: Sequence[State],
        keep: bool,
        visitor: Visitor | None = None,
        wanted: Collection[Node] = (),
    ) -> dict[Node, State]:
        """Read nodes, the longest first, each from its origin (None: from nothing); their states if kept."""
        state = self._fork(origins)
        ends = {}
        lengths = [len(node) for node in nodes]
        start = 0
        for stop in self._cuts(lengths, keep):
            alive = sum(length > start for length in lengths)
            if state is not None and start:
                state = _first_rows(state, alive)
            tokens, mask = self._batch(nodes[:alive], start, stop)
            # Only a state must not see padding: it lies to the right, and a causal model's outputs do not.
            h, state = self.model.hidden(tokens, state, attention_mask=mask if keep else None)
            if visitor is not None:
                visitor.read(nodes[:alive], start, h)
            for row in range(alive if keep else 0):
                if lengths[row] <= stop:
                    node = nodes[row]
                    ends[node] = select_rows(state, torch.tensor([row], device=self.device))
                    if visitor is not None and node in wanted:
                        visitor.arrived(node, h[row, lengths[row] - 1 - start], ends[node])
            start = stop
        return ends

    def _cuts(self, lengths: Sequence[int], keep: bool) -> list[int]:
        """Where calls end. Rows of different lengths run together to the end of the shortest: no padding."""
        longest, shortest = max(lengths), min(lengths)
        cuts = {*range(self.chunk, longest, self.chunk), longest}
        if keep and 2 * shortest > longest:
            cuts.add(shortest)
        return sorted(cuts)

    def _batch(self, nodes: Sequence[Node], start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Tokens ``[N, stop - start]``, zero where a node has ended, and the mask unless none has."""
        rows = [node.sequence[node.start + start : min(node.start + stop, node.end)] for node in nodes]
        real = torch.tensor([len(row) for row in rows])
        self.tokens_processed += int(real.sum())
        mask = torch.arange(stop - start) < real[:, None]
        tokens = torch.zeros(mask.shape, dtype=torch.long)
        tokens[mask] = torch.tensor([token for row in rows for token in row])
        return tokens.to(self.device), None if bool(mask.all()) else mask.to(self.device)

    def _fork(self, origins: Sequence[State]) -> State:
        """One state with a row for each origin; a single origin is one row that all of them see, no copy."""
        distinct = {id(origin): origin for origin in origins}
        if len(distinct) == 1:
            only = origins[0]
            return only and map_tensors(lambda t: t.expand(len(origins), *t.shape[1:]), only)
        if None in distinct.values():
            distinct[id(None)] = self._nothing = self._nothing or self.model.init_state(1)
        place = {key: n for n, key in enumerate(distinct)}
        rows = torch.tensor([place[id(origin)] for origin in origins], device=self.device)
        stacked = stack_rows(list(distinct.values()))
        return stacked if len(distinct) == len(origins) else select_rows(stacked, rows)


class _Ready:
    """Nodes whose parent has been read: inner ones by height, leaves in one pool.

    The highest go first: when the last of a height is read, all of the next lower are ready, so that batches
    are as full as can be. Where states are short of room the lowest go first, as these use states up.
    """

    def __init__(self, wanted: Collection[Node]) -> None:
        self._wanted = wanted
        self._inner: dict[int, list[Node]] = {}
        self._leaves: list[Node] = []

    def add(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.children or node in self._wanted:
                self._inner.setdefault(node.height, []).append(node)
            else:
                self._leaves.append(node)

    def take(self, batch_size: int, chunk: int, kept: KeptStates) -> list[Node]:
        """The next nodes to read together, longest first; empty when all are read."""
        roomy = kept.has_room_for(batch_size)
        if self._inner and (roomy or not self._leaves):
            height = max(self._inner) if roomy else min(self._inner)
            batch = _longest(self._inner[height], batch_size, batch_size * chunk, chunk)
            if not self._inner[height]:
                del self._inner[height]
            return batch
        return _longest(self._leaves, 4 * batch_size, batch_size * chunk, chunk)


def _longest(pool: list[Node], rows: int, tokens: int, chunk: int) -> list[Node]:
    """Take the longest node out of the pool and those that pad little beside it."""
    pool.sort(key=len)
    if not pool:
        return []
    longest = len(pool[-1])
    rows = min(rows, max(1, tokens // min(longest, chunk)))
    shortest = min(longest - 32, longest * 3 // 4)
    count = next((n for n in range(1, min(rows, len(pool))) if len(pool[-n - 1]) < shortest), rows)
    batch = pool[-count:][::-1]
    del pool[-count:]
    return batch


def _first_rows(state: State, count: int) -> State:
    return map_tensors(lambda t: t[:count], state)
