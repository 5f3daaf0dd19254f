"""Word problems of permutation groups (Merrill, Petty, Sabharwal 2024, arXiv:2404.08819; lengths as in Siems et al.
2025, arXiv:2502.10297)."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from linrec.errors import ConfigError
from linrec.evals.suites.parity import trackers
from linrec.evals.suites.suite import Batch, Candidate, Problem, Settings, Source, Suite

GROUPS = {"S3": (3, False), "A4": (4, True), "S4": (4, False), "A5": (5, True), "S5": (5, False)}


@functools.cache
def elements(group: str) -> tuple[tuple[int, ...], ...]:
    """The permutations of a group in lexicographic order; ``p[i]`` is where i goes."""
    points, even_only = GROUPS[group]
    found = itertools.permutations(range(points))
    return tuple(p for p in found if not even_only or _even(p))


def _even(p: tuple[int, ...]) -> bool:
    return sum(p[i] > p[j] for i in range(len(p)) for j in range(i + 1, len(p))) % 2 == 0


@functools.cache
def products(group: str) -> Tensor:
    """``[order, order]``: the index of "first a, then b", b(a(i)), at [a, b]."""
    listed = elements(group)
    index = {p: n for n, p in enumerate(listed)}
    rows = [[index[tuple(b[i] for i in a)] for b in listed] for a in listed]
    return torch.tensor(rows)


@dataclass(frozen=True)
class Words(Source):
    """Uniform elements of ``group``; the label at every position is the product of all elements so far.

    Raises ConfigError for an unknown group.
    """

    group: str = "S3"
    length: int = 128

    def __post_init__(self) -> None:
        if self.group not in GROUPS or self.length < 1:
            raise ConfigError(f"groups: expected one of {', '.join(GROUPS)} and a length >= 1, got {self}")

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """The order of the group."""
        return len(elements(self.group))

    @property
    def chance(self) -> float:
        """One of the elements."""
        return 1 / self.vocab_size

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """See the class."""
        tokens = torch.randint(self.vocab_size, (count, self.length), generator=generator)
        table, labels = products(self.group), tokens.clone()
        for t in range(1, self.length):
            labels[:, t] = table[labels[:, t - 1], tokens[:, t]]
        return Batch(tokens, labels)


def householder(depth: int, width: int, heads: int, steps: tuple[int, ...]) -> tuple[Candidate, ...]:
    """DeltaProduct with several numbers of Householder steps a token, and each range of eigenvalues."""
    found = []
    for count in steps:
        for negative in (True, False):
            plain = {"conv_size": 0, "use_gate": False, "use_forget_gate": False}
            options = {"delta_product": {"num_steps": count, "allow_neg_eigval": negative, **plain}}
            label = f"DeltaProduct, {count} steps, β in (0, {2 if negative else 1})".replace(
                "1 steps", "1 step"
            )
            found.append(Candidate(label, ("delta_product",), options, width, heads, depth))
    return tuple(found)


def problem(group: str, train: int, tests: tuple[int, ...], rows: int) -> Problem:
    """Train at one length, test at several."""
    return Problem(group, (Words(group, train),), {str(n): Words(group, n) for n in tests}, test_rows=rows)


def suite(size: str) -> Suite:
    """Small: S3, trained on 32 tokens. Full: S3, S4, A5, S5, trained on 128 tokens, tested on 512, as published."""
    others = tuple(c for c in trackers(1, 64, 2) if "DeltaNet" not in c.label)
    if size == "small":
        problems: tuple[Problem, ...] = (problem("S3", 32, (16, 32, 64, 96, 128), 128),)
        settings = Settings(steps=1000, batch_size=32, lr=2e-3, check_every=25, cooldown=75)
        candidates = (*householder(1, 64, 4, (2, 1)), *others)
        return Suite("groups", size, "S3, trained on 32 elements", problems, candidates, settings, "length")
    problems = tuple(
        problem(group, 128, (32, 64, 128, 256, 384, 512), 512) for group in ("S3", "S4", "A5", "S5")
    )
    settings = Settings(steps=100_000, batch_size=2048, lr=1e-3, warmup=1000, check_every=1000, cooldown=5000)
    candidates = (*householder(1, 128, 12, (1, 2, 3, 4)), *trackers(1, 128, 4))
    title = "Word problems, trained on 128 elements"
    return Suite("groups", size, title, problems, candidates, settings, "length", seeds=3)
