"""Log-probabilities of continuations, read off a walk over the trie of all contexts and continuations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from linrec.evals.harness.any_model import Readable
from linrec.evals.harness.prefix_trie import Node, PrefixTrie
from linrec.state import State

LOGITS_AT_ONCE = 2**23  # floats: 32 MB of logits, whatever the vocabulary


class Span(NamedTuple):
    """A node's tokens ``[start, end)``, counted from the root, whose next token is one to score."""

    request: int
    start: int
    end: int


class Scorer:
    """Sums, for each request ``(context, continuation)``, log p(token | all before it) over its continuation.

    Contexts hold at least one token. ``trie`` is what has to be walked; then ``scores()`` has the result.
    """

    def __init__(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        model: Readable,
    ) -> None:
        self._whole = [[*context, *continuation] for context, continuation in requests]
        self._head = model.logits
        self._positions = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
        # The last token is only a target; without a continuation there is nothing to read at all.
        read = [w[:-1] if r[1] else [] for w, r in zip(self._whole, requests, strict=True)]
        self.trie = PrefixTrie(read)
        self._spans: dict[Node, list[Span]] = {}
        for i, (context, _) in enumerate(requests):
            node = self.trie.ends[i]
            while node is not None and node.end >= len(context):
                span = Span(i, max(node.start, len(context) - 1), node.end)
                self._spans.setdefault(node, []).append(span)
                node = node.parent
        device = next(model.parameters()).device
        self._totals = torch.zeros(len(requests), dtype=torch.float64, device=device)
        self._misses = torch.zeros(len(requests), dtype=torch.long, device=device)

    def read(self, nodes: Sequence[Node], offset: int, h: Tensor) -> None:
        """Score what the spans of these nodes ask for, from ``h [N, T, D]``; see
        :class:`~linrec.evals.harness.prefix_walk.Visitor`."""
        places: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        for row, node in enumerate(nodes):
            first = node.start + offset
            for request, start, end in self._spans.get(node, ()):
                a, b = max(start, first), min(end, first + h.shape[1])
                if a < b:
                    base = row * h.shape[1] - first
                    places += range(base + a, base + b)
                    targets += self._whole[request][a + 1 : b + 1]
                    owners += [request] * (b - a)
        if places:
            index = torch.tensor([places, targets, owners], device=h.device)
            self._score(h.flatten(0, 1), *index)

    def _score(self, h: Tensor, places: Tensor, targets: Tensor, owners: Tensor) -> None:
        for start in range(0, len(places), self._positions):
            part = slice(start, start + self._positions)
            logits = self._head(h[places[part]])
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logp = logits.gather(-1, targets[part, None]).squeeze(-1) - logits.logsumexp(-1)
            self._totals.index_add_(0, owners[part], logp.double())
            self._misses.index_add_(0, owners[part], (logits.argmax(-1) != targets[part]).long())

    def arrived(self, node: Node, h: Tensor, state: State) -> None:
        """Nothing: every score is made where its tokens are read, and not from ``h [D]``."""

    def scores(self) -> list[tuple[float, bool]]:
        """(log-probability, whether every token was the likeliest) of each request."""
        greedy = (self._misses == 0).tolist()
        return list(zip(self._totals.tolist(), greedy, strict=True))
