"""A trie over token sequences: what sequences share at their start is stored, and later encoded, once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Node:
    """Tokens ``[start, end)`` of a sequence, behind those of ``parent``; nobody else continues it there.

    ``height`` is the number of nodes on the longest way down from here.
    """

    __slots__ = ("children", "end", "height", "parent", "sequence", "start")

    def __init__(self, parent: Node | None, sequence: Sequence[int], start: int, end: int) -> None:
        self.parent, self.sequence, self.start, self.end = parent, sequence, start, end
        self.children: list[Node] = []
        self.height = 0

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def tokens(self) -> Sequence[int]:
        """The node's own tokens."""
        return self.sequence[self.start : self.end]


class PrefixTrie:
    """The radix tree of ``sequences``.

    ``ends[i]`` is the node at whose last token sequence i ends, None for an empty one; equal sequences end at
    the same node. ``nodes`` lists every node, parents before their children.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.ends: list[Node | None] = [None] * len(sequences)
        self.roots: list[Node] = []
        arrays = [np.asarray(s, dtype=">u4") for s in sequences]
        # Big-endian bytes sort as the numbers do, at the speed of C; neighbours share the longest prefixes.
        order = sorted(range(len(sequences)), key=lambda i: arrays[i].tobytes())
        path: list[Node] = []
        previous = np.asarray([], dtype=">u4")
        for i in order:
            shared = _common_prefix(previous, arrays[i])
            self._cut(path, shared)
            if shared < len(sequences[i]):
                self._grow(path, sequences[i], shared)
            if path:
                self.ends[i] = path[-1]
            previous = arrays[i]
        self.nodes = self._below(self.roots)
        for node in reversed(self.nodes):
            node.height = 1 + max((child.height for child in node.children), default=-1)

    @property
    def tokens(self) -> int:
        """Tokens of all nodes: the least that any encoder has to read."""
        return sum(map(len, self.nodes))

    def _grow(self, path: list[Node], sequence: Sequence[int], start: int) -> None:
        parent = path[-1] if path else None
        node = Node(parent, sequence, start, len(sequence))
        (parent.children if parent else self.roots).append(node)
        path.append(node)

    def _cut(self, path: list[Node], shared: int) -> None:
        """Shorten the path to its first ``shared`` tokens; a node that reaches across is split there."""
        while path and path[-1].start >= shared:
            path.pop()
        if not path or path[-1].end <= shared:
            return
        lower = path.pop()
        # The lower part keeps its identity: sequences that ended at it still do.
        upper = Node(lower.parent, lower.sequence, lower.start, shared)
        siblings = upper.parent.children if upper.parent else self.roots
        siblings[siblings.index(lower)] = upper
        upper.children.append(lower)
        lower.parent, lower.start = upper, shared
        path.append(upper)

    def _below(self, nodes: list[Node]) -> list[Node]:
        found = list(nodes)
        for node in found:  # grows while it is walked
            found.extend(node.children)
        return found


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    size = min(len(a), len(b))
    differ = a[:size] != b[:size]
    return int(differ.argmax()) if differ.any() else size
