"""A model over a prefix trie: every node is read once, from its parent's state, many nodes side by side.

A state is a value, so a fork is another reference to it; rows are copied only into the batch that continues
them, and only nodes with children leave a state behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from linrec.evals.harness.any_model import Readable
from linrec.evals.harness.kept_states import KeptStates
from linrec.evals.harness.prefix_trie import Node, PrefixTrie
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
        batch_size: nodes side by side; of short ones up to four times as many, within ``batch_size * chunk``
            tokens a call.
        chunk: tokens of a row per call, half more at its end. None means 1024, or 256 on a CPU: activations
            of more tokens leave its caches.
        max_state_bytes: bound on the states kept for later. Under it the walk goes level by level,
            where batches are fullest; near it down to the leaves, so that states are used up.
    """

    def __init__(
        self,
        model: Readable,
        batch_size: int = 8,
        chunk: int | None = None,
        max_state_bytes: int = 2**30,
    ) -> None:
        self.model, self.batch_size = model, batch_size
        self.kept = KeptStates(max_state_bytes)
        self.device = next(model.parameters()).device
        self.chunk = chunk or (256 if self.device.type == "cpu" else 1024)
        self.tokens_processed = 0
        self._nothing: State = None

    def run(self, trie: PrefixTrie, visitor: Visitor, wanted: Collection[Node] = ()) -> Iterable[int]:
        """Read the whole trie and yield the tokens of each batch done; ``wanted`` nodes also arrive."""
        wanted = set(wanted)
        ready = _Ready(wanted)
        unread = {node: len(node.children) for node in trie.nodes}
        ready.add(trie.roots)
        while batch := ready.take(self.batch_size, self.batch_size * self.chunk, self.kept):
            parents = self._states([n.parent for n in batch if n.parent is not None])
            origins = [parents[n.parent] for n in batch]
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

    def _states(self, nodes: Iterable[Node]) -> dict[Node | None, State]:
        """The states behind these nodes; what is no longer kept is read again from the nearest that is."""
        found, lost = self._lost(nodes)
        while lost:
            ready = [node for node, above in lost.items() if above in found][: self.batch_size]
            again = {}
            for node in ready:
                above = lost.pop(node)
                again[node] = Node(above, node.sequence, above.end if above else 0, node.end)
            pieces = sorted(again.values(), key=len, reverse=True)
            states = self._advance(pieces, [found[piece.parent] for piece in pieces], True)
            for node, piece in again.items():
                found[node] = states[piece]
                self.kept.put(node, found[node])
        return found

    def _lost(self, nodes: Iterable[Node]) -> tuple[dict[Node | None, State], dict[Node, Node | None]]:
        """States that are kept, and what to read again for the others: nodes by their ends, each with where from.

        A way down is read in one piece, up to where two part: a chain of nodes costs one call, not one each.
        """
        found: dict[Node | None, State] = {None: None}
        passed: set[Node | None] = set()
        stops: set[Node] = set()
        for node in nodes:
            here: Node | None = node
            while here is not None and here not in found and here not in passed:
                if (state := self.kept.get(here)) is not None:
                    found[here] = state
                else:
                    passed.add(here)
                    here = here.parent
            if here is not None and here in passed:
                stops.add(here)
            if node not in found:
                stops.add(node)
        origins: dict[Node, Node | None] = {}
        for node in sorted(stops, key=lambda node: node.end):
            above = node.parent
            while above not in found and above not in stops:
                assert above is not None, "None is found"
                above = above.parent
            origins[node] = above
        return found, origins

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
        cuts = {*range(self.chunk, longest - self.chunk // 2, self.chunk), longest}
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
    """Nodes whose parent has been read: inner ones, and leaves.

    The highest go first: when the last of a height is read, all of the next lower are ready, so that batches
    are as full as can be; lower ones of like length fill them up. Where states are short of room the lowest go
    first, and alone, as these use states up.
    """

    def __init__(self, wanted: Collection[Node]) -> None:
        self._wanted = wanted
        self._inner: list[Node] = []
        self._leaves: list[Node] = []

    def add(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            (self._inner if node.children or node in self._wanted else self._leaves).append(node)

    def take(self, batch_size: int, tokens: int, kept: KeptStates) -> list[Node]:
        """The next nodes to read together, longest first; empty when all are read."""
        inner, leaves = self._inner, self._leaves
        if not inner and not leaves:
            return []
        most = 4 * batch_size
        roomy = kept.has_room_for(most)
        if inner and (roomy or not leaves):
            height = (max if roomy else min)(node.height for node in inner)
            first = [node for node in inner if node.height == height]
            leader, pool = max(first, key=len), inner if roomy else first
            most = most if roomy else batch_size
        else:
            leader, pool = max(leaves, key=len), leaves
        rows = max(batch_size, min(most, tokens // len(leader)))
        batch = _beside(leader, pool, rows)
        taken = set(batch)
        self._inner, self._leaves = (
            [node for node in nodes if node not in taken] for nodes in (inner, leaves)
        )
        return sorted(batch, key=len, reverse=True)


def _beside(leader: Node, pool: list[Node], rows: int) -> list[Node]:
    """The leader and the nodes of the pool next to it in length, where they pad little."""
    size = len(leader)
    most = max(32, size // 4)
    near = sorted(pool, key=lambda node: (abs(len(node) - size), node is not leader))[:rows]
    return [node for node in near if abs(len(node) - size) <= most]


def _first_rows(state: State, count: int) -> State:
    return map_tensors(lambda t: t[:count], state)
