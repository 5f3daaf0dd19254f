"""Induction heads far past the training length (Gu, Dao 2023, Mamba, arXiv:2312.00752)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from linrec.errors import ConfigError
from linrec.evals.suites.suite import IGNORED, Batch, Candidate, Problem, Settings, Source, Suite


@dataclass(frozen=True)
class Induction(Source):
    """Uniform tokens; a mark stands once at a random place and again at the end, where the token that followed it
    the first time is asked for. The mark is vocab_size - 1."""

    length: int = 256
    vocab_size: int = 16

    def __post_init__(self) -> None:
        if self.length < 3 or self.vocab_size < 3:
            raise ConfigError(f"induction: expected length >= 3 and vocab_size >= 3, got {self}")

    @property
    def chance(self) -> float:
        """One of the tokens besides the mark."""
        return 1 / (self.vocab_size - 1)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """See the class."""
        mark = self.vocab_size - 1
        tokens = torch.randint(mark, (count, self.length), generator=generator)
        place = torch.randint(self.length - 2, (count, 1), generator=generator)
        labels = torch.full_like(tokens, IGNORED)
        labels[:, -1:] = tokens.gather(1, place + 1)
        tokens.scatter_(1, place, mark)
        tokens[:, -1] = mark
        return Batch(tokens, labels)


MIXERS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("Mamba", "mamba", {}),
    ("Mamba-2", "mamba2", {"state_size": 32}),
    ("gated DeltaNet", "gated_delta_net", {}),
    ("linear attention", "linear_attention", {}),
    ("softmax, RoPE", "softmax_attention", {}),
    ("FoX", "forgetting_attention", {}),
    ("PaTH", "path_attention", {}),
)


def suite(size: str) -> Suite:
    """Small: trained on 32 tokens, tested up to 2048. Full: trained on 256, tested up to 2^20, as published."""
    small = size == "small"
    candidates = tuple(
        Candidate(label, (layer,), {layer: options} if options else {}, 64, 2, 2, mlp_ratio=None)
        for label, layer, options in MIXERS
    )
    lengths = [1 << n for n in (range(4, 12) if small else range(6, 21))]
    train = 32 if small else 256
    problem = Problem(
        "induction heads",
        (Induction(train),),
        {str(n): Induction(n) for n in lengths},
        test_rows=128 if small else 64,
    )
    if small:
        settings = Settings(steps=1500, batch_size=64, lr=5e-3)
    else:
        settings = Settings(
            steps=204_800, batch_size=8, lr=1e-3, warmup=0, floor=1.0, check_every=2048, cooldown=2048
        )
    title = f"Induction heads, trained on {train} tokens"
    return Suite("induction", size, title, (problem,), candidates, settings, "length")
