"""Mechanistic architecture design: six small tasks (Poli et al. 2024, arXiv:2403.17844). Recall is in mad_recall.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from linrec.errors import ConfigError
from linrec.evals.suites.mad_recall import FuzzyRecall, Recall
from linrec.evals.suites.selective_copy import SelectiveCopy
from linrec.evals.suites.suite import IGNORED, Batch, Candidate, Problem, Settings, Source, Suite


@dataclass(frozen=True)
class Memorization(Source):
    """Keys, each followed by a mark at which the key's value is asked; the map from keys to values never changes.

    Keys are the ids below (vocab_size - 1) / 2, values those above them, the mark is vocab_size - 1.
    """

    length: int = 32
    vocab_size: int = 256
    map_seed: int = 12345

    def __post_init__(self) -> None:
        if self.length % 2 or self.length < 2 or self.vocab_size < 3:
            raise ConfigError(f"memorization: expected an even length and vocab_size >= 3, got {self}")

    @property
    def chance(self) -> float:
        """One of the values."""
        return 1 / (self.vocab_size - 1 - (self.vocab_size - 1) // 2)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """See the class."""
        keys = (self.vocab_size - 1) // 2
        fixed = torch.Generator().manual_seed(self.map_seed)
        value_of = keys + torch.randperm(self.vocab_size - 1 - keys, generator=fixed)[:keys]
        drawn = torch.randint(keys, (count, self.length // 2), generator=generator)
        tokens = torch.full((count, self.length), self.vocab_size - 1)
        labels = torch.full((count, self.length), IGNORED)
        tokens[:, 0::2], labels[:, 1::2] = drawn, value_of[drawn]
        return Batch(tokens, labels)


@dataclass(frozen=True)
class Compression(Source):
    """Uniform tokens and a mark; every token of the input is asked for, from the mark's hidden state alone."""

    readout: ClassVar[str] = "last"
    length: int = 32
    vocab_size: int = 16

    def __post_init__(self) -> None:
        if self.length < 2 or self.vocab_size < 3:
            raise ConfigError(f"compression: expected length >= 2 and vocab_size >= 3, got {self}")

    @property
    def chance(self) -> float:
        """The mark is known, the others are one of vocab_size - 1 tokens."""
        return (1 + (self.length - 1) / (self.vocab_size - 1)) / self.length

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """See the class."""
        tokens = torch.randint(self.vocab_size - 1, (count, self.length), generator=generator)
        tokens[:, -1] = self.vocab_size - 1
        return Batch(tokens, tokens.clone())


Mixers = tuple[tuple[str, tuple[str, ...], dict[str, object]], ...]
COMMON: Mixers = (
    ("Mamba-2", ("mamba2",), {"state_size": 32}),
    ("DeltaNet", ("delta_net",), {}),
    ("gated DeltaNet", ("gated_delta_net",), {}),
    ("RWKV-7", ("rwkv7",), {}),
)
FULL: Mixers = (
    ("softmax attention", ("softmax_attention",), {}),
    ("linear attention", ("linear_attention",), {}),
    ("GLA", ("gla",), {}),
    *COMMON,
    ("S4D", ("s4d",), {}),
)
# One block cannot pair a value with the key before it, so the mixers without a convolution or shift get one here;
# the LRU stands in for S4D, whose scan takes longest.
SMALL: Mixers = (
    ("softmax attention", ("canon", "softmax_attention"), {}),
    ("linear attention", ("linear_attention",), {"conv_size": 4}),
    ("GLA", ("gla",), {"conv_size": 4}),
    *COMMON,
    ("LRU", ("lru",), {}),
)


def problems(scale: int = 1) -> tuple[Problem, ...]:
    """The six tasks; lengths are divided by ``scale``, which is 1 as published."""
    recall = Recall(128 // scale)
    noisy = Recall(128 // scale, vocab_size=32, noise_vocab=16, noise_share=0.2)
    fuzzy = FuzzyRecall(128 // scale)
    pairs: tuple[tuple[str, Source, Source], ...] = (
        ("in-context recall", replace(recall, dense=True), recall),
        ("noisy recall", replace(noisy, dense=True), noisy),
        ("fuzzy recall", replace(fuzzy, training=True), fuzzy),
        *(
            (name, source, source)
            for name, source in (
                (
                    "selective copying",
                    SelectiveCopy(256 // scale - 1 - 16 // scale, 16 // scale, slots=True),
                ),
                ("compression", Compression(32 // scale)),
                ("memorization", Memorization(32)),
            )
        ),
    )
    return tuple(
        Problem(name, (train,), {"test": test}, train_rows=(12_800,), test_rows=1280)
        for name, train, test in pairs
    )


def suite(size: str) -> Suite:
    """Small: half as long, one block. Full: 200 epochs of 12 800 examples, width 128, two blocks, all rates."""
    small = size == "small"
    width, heads = (64, 2) if small else (128, 8)
    candidates = tuple(
        Candidate(
            label,
            pattern,
            {pattern[-1]: options} if options else {},
            width,
            heads,
            len(pattern) if small else 2,
        )
        for label, pattern, options in (SMALL if small else FULL)
    )
    title = "MAD: six tasks"
    if small:
        settings = Settings(steps=300, batch_size=64, lr=5e-3, check_every=50, cooldown=50)
        return Suite("mad", size, title, problems(2), candidates, settings, "heat")
    settings = Settings(steps=20_000, batch_size=128, lr=5e-4, warmup=0, weight_decay=0.0, check_every=1000)
    return Suite("mad", size, title, problems(), candidates, settings, "heat", rates=(1e-4, 5e-4, 1e-3))
