"""Selective copying (Gu, Dao 2023, Mamba, arXiv:2312.00752; MAD's variant: Poli et al. 2024, arXiv:2403.17844)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from linrec.errors import ConfigError
from linrec.evals.suites.suite import IGNORED, Batch, Candidate, Problem, Settings, Source, Suite


@dataclass(frozen=True)
class SelectiveCopy(Source):
    """``items`` data tokens scattered in ``context`` tokens of noise, then a copy mark and ``items`` blanks, at which
    the data tokens are asked for in their order.

    ``slots`` False: every set of positions is equally likely (Mamba). True: each noise token stands before one of
    the data tokens, uniformly chosen (MAD), so that the context ends with data. Data are the ids below
    vocab_size - 2, noise and blanks are vocab_size - 2, the mark is vocab_size - 1.
    """

    context: int = 4096
    items: int = 16
    vocab_size: int = 16
    slots: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.items <= self.context or self.vocab_size < 4:
            raise ConfigError(
                f"selective copying: expected 1 <= items <= context and vocab_size >= 4, got {self}"
            )

    @property
    def length(self) -> int:  # type: ignore[override]
        """Context, mark and blanks."""
        return self.context + 1 + self.items

    @property
    def chance(self) -> float:
        """One of the data tokens."""
        return 1 / (self.vocab_size - 2)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """See the class."""
        blank, mark = self.vocab_size - 2, self.vocab_size - 1
        data = torch.randint(blank, (count, self.items), generator=generator)
        tokens = torch.full((count, self.length), blank)
        tokens.scatter_(1, self._places(count, generator), data)
        tokens[:, self.context] = mark
        labels = torch.full_like(tokens, IGNORED)
        labels[:, self.context + 1 :] = data
        return Batch(tokens, labels)

    def _places(self, count: int, generator: torch.Generator) -> Tensor:
        """Rising positions of the data tokens."""
        if not self.slots:
            order = torch.rand(count, self.context, generator=generator).topk(self.items, dim=1).indices
            return order.sort(dim=1).values
        before = torch.randint(self.items, (count, self.context - self.items), generator=generator)
        noise = torch.zeros(count, self.items, dtype=torch.long)
        noise.scatter_add_(1, before, torch.ones_like(before))
        return noise.cumsum(1) + torch.arange(self.items)


GATED: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("Mamba", "mamba", {}),
    ("Mamba-2", "mamba2", {"state_size": 32}),
    ("GLA", "gla", {"expand_v": 1.0}),
    ("gated DeltaNet", "gated_delta_net", {}),
    ("DeltaNet", "delta_net", {}),
)
UNGATED: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("S4D", "s4d", {}),
    ("LRU", "lru", {}),
    ("linear attention", "linear_attention", {}),
    ("RetNet", "retnet", {}),
)


def suite(size: str) -> Suite:
    """Small: 6 tokens among 24, without Mamba-1, whose scan takes longest.

    Full: 16 tokens in 4096, two layers of width 64, as published.
    """
    small = size == "small"
    candidates = tuple(
        Candidate(label, (layer,), {layer: options} if options else {}, 64, 2, 2, mlp_ratio=None)
        for label, layer, options in (*GATED, *UNGATED)
        if not (small and layer == "mamba")
    )
    title = "Selective copying"
    if small:
        source = SelectiveCopy(24, 6)
        problem = Problem("6 tokens among 24", (source,), {"6 of 24": source})
        settings = Settings(steps=1000, batch_size=64, lr=5e-3)
        return Suite("selective_copy", size, title, (problem,), candidates, settings, "bars")
    source = SelectiveCopy()
    problem = Problem("16 tokens among 4096", (source,), {"16 of 4096": source})
    settings = Settings(
        steps=400_000, batch_size=64, lr=1e-4, warmup=1000, floor=1.0, check_every=2000, cooldown=2000
    )
    return Suite("selective_copy", size, title, (problem,), candidates, settings, "bars")
