"""Multi-query associative recall (Arora et al. 2023, Zoology, arXiv:2312.04927)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from linrec.errors import ConfigError
from linrec.evals.suites.suite import IGNORED, Batch, Candidate, Problem, Settings, Source, Suite


@dataclass(frozen=True)
class Mqar(Source):
    """``pairs`` keys with their values, then each key once more somewhere; the answer there is its value.

    Token 0 is not used by keys; keys are from the lower half of the vocabulary, values from the upper half, each
    without repetition. Of the ``S = (length - 2 pairs) / 2`` places after the pairs (every second position), each
    key gets one, in turn, with probability proportional to s^(power - 1) without replacement. All other positions
    hold uniform tokens. Raises ConfigError for sizes that do not fit.
    """

    length: int = 64
    pairs: int = 4
    vocab_size: int = 8192
    power: float = 0.01

    def __post_init__(self) -> None:
        if self.length % 2 or 4 * self.pairs > self.length or self.pairs > self.vocab_size // 2 - 1:
            raise ConfigError(
                f"MQAR: expected an even length >= 4 * pairs and pairs < vocab_size / 2, got {self}"
            )

    @property
    def chance(self) -> float:
        """One of the values."""
        return 1 / (self.vocab_size - self.vocab_size // 2)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """See the class."""
        half, context = self.vocab_size // 2, 2 * self.pairs
        keys = 1 + _distinct(count, half - 1, self.pairs, generator)
        values = half + _distinct(count, self.vocab_size - half, self.pairs, generator)
        space = (self.length - context) // 2
        weights = torch.arange(1, space + 1, dtype=torch.float64) ** (self.power - 1)
        places = context + 2 * torch.multinomial(
            weights.expand(count, -1), self.pairs, replacement=False, generator=generator
        )
        tokens = torch.randint(self.vocab_size, (count, self.length), generator=generator)
        tokens[:, 0:context:2], tokens[:, 1:context:2] = keys, values
        tokens.scatter_(1, places, keys)
        labels = torch.full_like(tokens, IGNORED).scatter_(1, places, values)
        return Batch(tokens, labels)


def _distinct(count: int, size: int, pick: int, generator: torch.Generator) -> torch.Tensor:
    """``pick`` different numbers below ``size`` in each of ``count`` rows."""
    return torch.rand(count, size, generator=generator).topk(pick, dim=1).indices


MIXERS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("softmax attention", "softmax_attention", {}),
    ("linear attention", "linear_attention", {}),
    ("GLA", "gla", {"expand_v": 1.0}),
    ("DeltaNet", "delta_net", {}),
    ("gated DeltaNet", "gated_delta_net", {}),
)


CONVOLVED = ("delta_net", "gated_delta_net")  # layers with short convolutions of their own


def candidates(widths: tuple[int, ...], repeats: int) -> tuple[Candidate, ...]:
    """Each mixer in each width, with a short convolution, its own or one before it: that pairs a value with the key
    before it."""
    found = []
    for label, layer, options in MIXERS:
        for width in widths:
            heads = {"head_dim": width} if layer == "gla" else {}
            found.append(
                Candidate(
                    label,
                    ((layer,) if layer in CONVOLVED else ("canon", layer)) * repeats,
                    {layer: {**options, **heads}},
                    width=width,
                    heads=1,
                    mlp_ratio=None,
                )
            )
    return tuple(found)


def suite(size: str) -> Suite:
    """Small: 16 pairs in 64 tokens of a vocabulary of 64. Full: the paper's lengths, widths and rates."""
    if size == "small":
        problem = Problem(
            "16 pairs in 64 tokens",
            (Mqar(64, 4, 64), Mqar(64, 8, 64), Mqar(64, 16, 64)),
            {"64": Mqar(64, 16, 64)},
        )
        settings = Settings(steps=1200, batch_size=64, lr=5e-3, check_every=100)
        return Suite(
            "mqar",
            size,
            "Multi-query associative recall",
            (problem,),
            candidates((16, 24, 32), 1),
            settings,
            "state",
        )
    shapes = ((64, 4), (128, 8), (256, 16), (512, 64))
    problems = tuple(
        Problem(f"{pairs} pairs in {n} tokens", (Mqar(n, pairs),), {str(n): Mqar(n, pairs)}, (100_000,), 3000)
        for n, pairs in shapes
    )
    settings = Settings(steps=12_500, batch_size=512, lr=1e-3, warmup=1250, weight_decay=0.1, check_every=500)
    rates = tuple(10 ** (-4 + 2 * i / 3) for i in range(4))
    return Suite(
        "mqar",
        size,
        "Multi-query associative recall",
        problems,
        candidates((64, 128, 256, 512), 1),
        settings,
        "state",
        seeds=1,
        rates=rates,
    )
