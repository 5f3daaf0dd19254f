"""One training run: a candidate on a problem, from a seed to its scores."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linrec.evals.small import parameters
from linrec.evals.suites.suite import IGNORED, Batch, Candidate, Problem, Settings, Source
from linrec.models.language_model import LanguageModel
from linrec.models.training import descend, learning_rate, make_optimizer
from linrec.state import named_tensors

Report = Callable[[int, float, float], None]  # step, loss, held-out accuracy so far
TOKENS_AT_ONCE = 16_384  # of a test, so that long ones do not need more memory than training


@dataclass
class Outcome:
    """What a run gave. ``scores``: accuracy of each test; ``state_floats``: floats of one row's state after it."""

    parameters: int
    steps: int
    solved: bool
    seconds: float
    loss: float
    train_accuracy: float
    scores: dict[str, float] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    state_floats: dict[str, int] = field(default_factory=dict)


class Reader(nn.Module):
    """A language model whose answers are read where the source wants them.

    "each": its logits. "last": every answer comes out of the last token's hidden state, position i through a learned
    embedding of i and an MLP, so that the whole sequence has to pass through one vector.
    """

    def __init__(self, candidate: Candidate, problem: Problem):
        super().__init__()
        self.model = LanguageModel(candidate.config(problem.vocab_size))
        self.positions: nn.Parameter | None = None
        if problem.train[0].readout == "last":
            width, length = candidate.width, problem.train[0].length
            self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
            self.decoder = nn.Sequential(
                nn.RMSNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """``[N, T] -> [N, T, vocab]``."""
        h, _ = self.model.hidden(tokens)
        if self.positions is not None:
            h = h[:, -1:] + self.positions
            h = h + self.decoder(h)
        return self.model.logits(h)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.model.device


def run(
    problem: Problem,
    candidate: Candidate,
    settings: Settings,
    seed: int,
    *,
    device: str = "cpu",
    report: Report | None = None,
) -> Outcome:
    """Train and test; the result depends on the arguments alone (and on rounding). Raises TrainingError."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reader = Reader(candidate, problem).to(device)
    started = time.perf_counter()
    steps, solved, loss = _train(reader, problem, settings, seed, report)
    held_out = [source.draw(problem.test_rows, _stream("check", seed)) for source in problem.train]
    outcome = Outcome(parameters(reader), steps, solved, 0.0, loss, _lowest(reader, held_out))
    for name, source in problem.tests.items():
        batch = source.draw(problem.test_rows, _stream(f"test {name}", seed))
        outcome.scores[name] = accuracy(reader, batch)
        outcome.chance[name] = source.chance
        outcome.state_floats[name] = state_floats(reader.model, source.length)
    outcome.seconds = round(time.perf_counter() - started, 1)
    return outcome


def _train(
    reader: Reader, problem: Problem, settings: Settings, seed: int, report: Report | None
) -> tuple[int, bool, float]:
    """Steps taken, whether the training distribution was solved, and the mean loss of the last steps."""
    config = settings.optimizer()
    optimizer = make_optimizer(reader, config)
    check = [source.draw(256, _stream("check", seed)) for source in problem.train]
    data = batches(problem, settings.batch_size, _stream("train", seed))
    solved_at: int | None = None
    mean, right = math.nan, 0.0
    step = 0
    for step in range(settings.steps):
        rate = learning_rate(step, config)
        if solved_at is not None:
            rate *= max(0.0, 1 - (step - solved_at) / max(1, settings.cooldown))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = descend(reader, optimizer, _loss(reader, next(data)), config, step)
        mean = loss if math.isnan(mean) else 0.95 * mean + 0.05 * loss
        if solved_at is not None and step - solved_at >= settings.cooldown:
            break
        if solved_at is None and (step + 1) % settings.check_every == 0:
            right = _lowest(reader, check)
            solved_at = step if right >= settings.solved else None
        if report is not None:
            report(step + 1, mean, right)
    return step + 1, solved_at is not None, mean


def _loss(reader: Reader, batch: Batch) -> Tensor:
    reader.train()
    logits = reader(batch.tokens.to(reader.device))
    labels = batch.labels.to(reader.device)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


def batches(problem: Problem, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Endless batches, each of one training source, sources in proportion to their number of examples."""
    rows = problem.train_rows or (None,) * len(problem.train)
    streams = [
        _source_batches(source, count, size, generator)
        for source, count in zip(problem.train, rows, strict=True)
    ]
    weights = torch.tensor([float(count or 1) for count in rows])
    while True:
        yield next(streams[int(torch.multinomial(weights, 1, generator=generator))])


def _source_batches(
    source: Source, count: int | None, size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """New examples for ever, or a fixed set in a new order each epoch."""
    while count is None:
        yield source.draw(size, generator)
    tokens, labels = source.draw(count, generator)
    while True:
        for rows in torch.randperm(count, generator=generator).split(size):
            yield Batch(tokens[rows], labels[rows])


@torch.no_grad()
def accuracy(reader: Reader, batch: Batch) -> float:
    """Share of the labelled positions that get the right answer."""
    reader.eval()
    rows = max(1, TOKENS_AT_ONCE // batch.tokens.shape[1])
    right = asked = 0
    for tokens, labels in zip(batch.tokens.split(rows), batch.labels.split(rows), strict=True):
        answers = reader(tokens.to(reader.device)).argmax(-1).cpu()
        right += int((answers == labels).sum())
        asked += int((labels != IGNORED).sum())
    return right / asked


def _lowest(reader: Reader, sets: list[Batch]) -> float:
    return min(accuracy(reader, batch) for batch in sets)


@torch.no_grad()
def state_floats(model: LanguageModel, length: int) -> int:
    """Floats of one row's state after ``length`` tokens, measured on the state itself."""
    tokens = torch.zeros(1, length, dtype=torch.long, device=model.device)
    state = model.hidden(tokens)[1]
    return sum(t.numel() for _, t in named_tensors(state) if t.is_floating_point())


def _stream(purpose: str, seed: int) -> torch.Generator:
    """A generator of its own for each purpose, so that tests never repeat training's numbers."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
