"""Parity (as trained and tested in Grazzi et al. 2024, arXiv:2411.12537)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from linrec.errors import ConfigError
from linrec.evals.suites.suite import IGNORED, Batch, Candidate, Problem, Settings, Source, Suite


@dataclass(frozen=True)
class Parity(Source):
    """Uniform bits; the label of the last one is the sum of all modulo 2.

    Lengths are uniform in ``shortest`` .. ``length``; shorter rows are filled up behind the label.
    """

    shortest: int = 3
    length: int = 40
    vocab_size: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.length:
            raise ConfigError(f"parity: expected 1 <= shortest <= length, got {self}")

    @property
    def chance(self) -> float:
        """Even or odd."""
        return 0.5

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """See the class."""
        tokens = torch.randint(2, (count, self.length), generator=generator)
        last = torch.randint(self.shortest - 1, self.length, (count, 1), generator=generator)
        sums = tokens.cumsum(1) % 2
        labels = torch.full_like(tokens, IGNORED).scatter_(1, last, sums.gather(1, last))
        return Batch(tokens, labels)


STATE_TRACKERS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("DeltaNet, β in (0, 2)", "delta_net", {"allow_neg_eigval": True, "conv_size": 0}),
    ("DeltaNet, β in (0, 1)", "delta_net", {"conv_size": 0}),
    ("Mamba-2", "mamba2", {"state_size": 32}),
    ("linear attention", "linear_attention", {}),
    ("sLSTM", "slstm", {}),
    ("softmax attention", "softmax_attention", {}),
    ("FoX", "forgetting_attention", {}),
    ("PaTH", "path_attention", {}),
    ("DeltaFormer", "delta_former", {}),
)


def trackers(depth: int, width: int, heads: int) -> tuple[Candidate, ...]:
    """The mechanisms between which state tracking separates."""
    return tuple(
        Candidate(label, (layer,), {layer: options} if options else {}, width, heads, depth)
        for label, layer, options in STATE_TRACKERS
    )


def suite(size: str) -> Suite:
    """Train on 3 .. 40 bits, test up to 256. Full: the paper's two layers of width 128 and its rates."""
    tests = {str(n): Parity(n, n) for n in (16, 40, 64, 96, 128, 192, 256)}
    problem = Problem("parity", (Parity(3, 40),), {**tests, "40-256": Parity(40, 256)}, test_rows=512)
    title = "Parity, trained on 3 to 40 bits"
    if size == "small":
        settings = Settings(steps=400, batch_size=128, lr=5e-3, check_every=25, cooldown=75)
        convolved = Candidate(
            "DeltaNet, β in (0, 2), convolution", ("delta_net",), {"delta_net": {"allow_neg_eigval": True}}
        )
        candidates = (*trackers(1, 64, 2), convolved)
        return Suite("parity", size, title, (problem,), candidates, settings, "length", seeds=3)
    settings = Settings(steps=20_000, batch_size=1024, lr=1e-3, warmup=2000, check_every=500, cooldown=2000)
    rates = (1e-2, 1e-3, 5e-4, 1e-4)
    return Suite(
        "parity", size, title, (problem,), trackers(2, 128, 4), settings, "length", seeds=3, rates=rates
    )
