"""What a suite is made of: sources of exact data, problems, candidates, and how they are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from linrec.models.config import Config
from linrec.models.training import TrainConfig

IGNORED = -100  # the label of a position without a question, as in torch's cross entropy


class Batch(NamedTuple):
    """tokens ``[N, T]`` and labels ``[N, T]``, int64; label IGNORED where nothing is asked."""

    tokens: Tensor
    labels: Tensor


class Source:
    """A distribution of examples; subclasses are frozen dataclasses, so that a run's settings can be written down.

    ``readout`` says where answers are read: "each" at the position of the label, "last" all from the last token.
    """

    vocab_size: int
    length: int
    readout: ClassVar[str] = "each"

    @property
    def chance(self) -> float:
        """Accuracy of guessing uniformly among the possible answers."""
        raise NotImplementedError

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """``count`` independent examples."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """The kind of source and its settings, for the record."""
        return {"kind": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Problem:
    """Train on ``train``, test on ``tests`` by name.

    ``train_rows``: how many examples each training source has in all; None draws new ones at every step.
    """

    name: str
    train: tuple[Source, ...]
    tests: Mapping[str, Source]
    train_rows: tuple[int, ...] | None = None
    test_rows: int = 512

    @property
    def vocab_size(self) -> int:
        """Large enough for every source."""
        return max(source.vocab_size for source in (*self.train, *self.tests.values()))

    def describe(self) -> dict[str, Any]:
        """Everything that the data depends on besides the seed."""
        return {
            "name": self.name,
            "train": [source.describe() for source in self.train],
            "tests": {name: source.describe() for name, source in self.tests.items()},
            "train_rows": self.train_rows,
            "test_rows": self.test_rows,
        }


@dataclass(frozen=True)
class Candidate:
    """A model to train: a pattern of layers by name with options. Candidates of one label form one curve."""

    label: str
    pattern: tuple[str, ...]
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    width: int = 64
    heads: int = 2
    depth: int | None = None
    mlp_ratio: float | None = 2.0

    def config(self, vocab_size: int) -> Config:
        """The language model's configuration."""
        return Config(
            vocab_size=vocab_size,
            d_model=self.width,
            num_layers=self.depth,
            pattern=self.pattern,
            num_heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            layer_options=self.options,
            tie_embeddings=False,
        )


@dataclass(frozen=True)
class Settings:
    """Training: the rate rises over ``warmup`` steps and falls by a cosine to ``floor`` of itself at ``steps``.

    Every ``check_every`` steps held-out examples of the training distribution are answered; once their accuracy
    reaches ``solved`` the rate falls to zero over ``cooldown`` steps and training ends.
    """

    steps: int = 1000
    batch_size: int = 64
    lr: float = 3e-3
    warmup: int = 50
    floor: float = 0.1
    weight_decay: float = 0.01
    check_every: int = 50
    solved: float = 0.999
    cooldown: int = 100

    def optimizer(self) -> TrainConfig:
        """The same in the terms of the byte-level training, whose optimiser and schedule are used."""
        return TrainConfig(
            steps=self.steps,
            lr=self.lr,
            warmup=self.warmup,
            min_lr_ratio=self.floor,
            weight_decay=self.weight_decay,
            betas=(0.9, 0.98),
        )


@dataclass(frozen=True)
class Suite:
    """Problems, candidates, and the view of the results that answers the suite's question.

    ``view``: "length" (accuracy against the test's length), "state" (against the floats of the state), "bars" (one
    accuracy a candidate) or "heat" (candidates by problems). ``rates``: learning rates to try; the best one a
    candidate and seed is shown.
    """

    name: str
    size: str
    title: str
    problems: tuple[Problem, ...]
    candidates: tuple[Candidate, ...]
    settings: Settings
    view: str
    seeds: int = 1
    rates: tuple[float, ...] = ()
