"""Modular arithmetic without brackets (Delétang et al. 2022, arXiv:2207.02098; lengths as in Grazzi et al. 2024,
arXiv:2411.12537)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from linrec.errors import ConfigError
from linrec.evals.suites.parity import trackers
from linrec.evals.suites.suite import IGNORED, Batch, Candidate, Problem, Settings, Source, Suite

OPERATORS = "+-*"


@dataclass(frozen=True)
class Modular(Source):
    """Digits below ``modulus`` with +, -, * between them and = at the end, where the value modulo ``modulus`` is asked.

    Multiplication goes first. An expression with its = has an even length, uniform among the even numbers in
    ``shortest`` .. ``length``; shorter rows are filled up behind the label. Ids: the digits, then + - * =.
    """

    shortest: int = 3
    length: int = 40
    modulus: int = 5

    def __post_init__(self) -> None:
        if self.modulus < 2 or not 1 <= self.shortest <= self.length or self._most < self._fewest:
            raise ConfigError(
                f"modular: expected modulus >= 2 and an even number in shortest .. length, got {self}"
            )

    @property
    def _fewest(self) -> int:
        return max(1, (self.shortest + 1) // 2)

    @property
    def _most(self) -> int:
        return self.length // 2

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """Digits, operators and the equals sign."""
        return self.modulus + len(OPERATORS) + 1

    @property
    def chance(self) -> float:
        """One of the digits."""
        return 1 / self.modulus

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """See the class."""
        digits = torch.randint(self.modulus, (count, self._most), generator=generator)
        operators = torch.randint(len(OPERATORS), (count, self._most), generator=generator)
        terms = torch.randint(self._fewest, self._most + 1, (count, 1), generator=generator)
        tokens = torch.stack([digits, self.modulus + operators], dim=2).flatten(1)
        values = running_values(digits, operators, self.modulus)
        end = 2 * terms - 1
        tokens.scatter_(1, end, self.vocab_size - 1)
        labels = torch.full_like(tokens, IGNORED).scatter_(1, end, values.gather(1, terms - 1))
        return Batch(tokens, labels)


def running_values(digits: Tensor, operators: Tensor, modulus: int) -> Tensor:
    """``[N, n]``: the value of the first 1 .. n digits; ``operators[:, i]`` stands after ``digits[:, i]``."""
    total = torch.zeros_like(digits[:, 0])
    product = digits[:, 0]
    values = [product]
    for i in range(1, digits.shape[1]):
        times = operators[:, i - 1] == OPERATORS.index("*")
        sign = torch.where(operators[:, i - 1] == OPERATORS.index("-"), -1, 1)
        total = torch.where(times, total, total + product)
        product = torch.where(times, product * digits[:, i], sign * digits[:, i]) % modulus
        values.append((total + product) % modulus)
    return torch.stack(values, dim=1)


def problem(longest: int, modulus: int, tests: tuple[int, ...], span: int) -> Problem:
    """Train on 3 .. ``longest`` tokens, test at some lengths and over ``longest`` .. ``span``."""
    sources = {str(n): Modular(n, n, modulus) for n in tests}
    sources[f"{longest}-{span}"] = Modular(longest, span, modulus)
    return Problem("modular", (Modular(3, longest, modulus),), sources, test_rows=512)


def suite(size: str) -> Suite:
    """Small: modulo 3, trained on 3 .. 12 tokens. Full: modulo 5, 3 .. 40 and 40 .. 256, three layers, as published."""
    title = "Modular arithmetic"
    product = {"delta_product": {"num_steps": 2, "conv_size": 0}}
    if size == "small":
        settings = Settings(steps=1500, batch_size=128, lr=3e-3, check_every=50)
        mixers = (
            *trackers(2, 64, 2),
            Candidate("DeltaProduct, 2 steps", ("delta_product",), product, 64, 2, 2),
        )
        asked = problem(12, 3, (8, 12, 16, 20, 28, 40, 64), 64)
        title += " modulo 3, trained on 3 to 12 tokens"
        return Suite("modular", size, title, (asked,), mixers, settings, "length")
    settings = Settings(steps=20_000, batch_size=1024, lr=1e-3, warmup=2000, check_every=500, cooldown=2000)
    mixers = (
        *trackers(3, 128, 4),
        Candidate("DeltaProduct, 2 steps", ("delta_product",), product, 128, 4, 3),
    )
    rates = (1e-2, 1e-3, 5e-4, 1e-4)
    asked = problem(40, 5, (16, 40, 64, 96, 128, 192, 256), 256)
    title += ", trained on 3 to 40 tokens"
    return Suite("modular", size, title, (asked,), mixers, settings, "length", seeds=3, rates=rates)
