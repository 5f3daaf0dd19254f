"""Training on text and measuring bits per byte."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from linrec.engines.numerics.products import wide_products
from linrec.errors import ConfigError, LinrecError
from linrec.models.corpus import Corpus, token_stream
from linrec.models.language_model import LanguageModel
from linrec.models.tokenizer import ByteTokenizer, Tokenizer
from linrec.terminal import console

OnLog = Callable[[int, dict[str, float]], None]


class TrainingError(LinrecError, RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run: ``lr`` rises linearly over ``warmup`` steps, then falls to ``min_lr_ratio * lr``.

    Raises ConfigError for values outside their range.
    """

    steps: int = 300
    batch_size: int = 8
    seq_len: int = 256
    lr: float = 2e-3
    warmup: int = 30
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    seed: int = 0
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "seq_len", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected >= 1, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a finite number > 0, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "min_lr_ratio"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a finite number >= 0, got {getattr(self, name)}")

        if not -(2**63) <= self.seed < 2**64:
            raise ConfigError(f"seed: expected an integer of 64 bits, got {self.seed}")

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, as JSON can hold them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass
class TrainResult:
    """Loss of every step (nats a token), seconds of the whole run, tokens trained on a second, tokens a byte."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    tokens_per_byte: float = 1.0


def train(
    model: LanguageModel,
    corpus: Corpus,
    config: TrainConfig | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    progress: Progress | bool = False,
    on_log: OnLog | None = None,
) -> TrainResult:
    """Train ``model`` in place on random windows of the corpus's token stream; it is left in evaluation mode.

    ``tokenizer`` is the model's (default: bytes). Batches depend on ``config.seed`` alone. ``progress`` True shows a
    bar; a rich Progress gets a task, whose field ``note`` holds loss and speed. Nothing is written, so an interruption
    leaves no file behind.
    Raises ConfigError for a corpus shorter than a window, TrainingError when the loss stops being a number.
    """
    config, tokenizer = config or TrainConfig(), tokenizer or ByteTokenizer()
    check_vocabulary(model, tokenizer)
    stream = token_stream(corpus.train, tokenizer)
    if stream.numel() < config.seq_len + 1:
        raise ConfigError(
            f"expected at least seq_len + 1 = {config.seq_len + 1} tokens, got {stream.numel()}"
        )
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = make_optimizer(model, config)
    result, start = (
        TrainResult(tokens_per_byte=_tokens_per_byte(stream, corpus, tokenizer)),
        time.perf_counter(),
    )
    with progress_bar(progress) as bar:
        task = bar.add_task("train", total=config.steps, note="")
        for step in _train_mode(model, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            result.losses.append(
                train_step(model, optimizer, draw_batch(stream, config, generator), config, step)
            )
            result.seconds = time.perf_counter() - start
            result.tokens_per_second = (step + 1) * config.batch_size * config.seq_len / result.seconds
            bar.update(task, advance=1, note=_note(result))
            if on_log and ((step + 1) % config.log_every == 0 or step + 1 == config.steps):
                on_log(step + 1, _log(result, step, config))
    return result


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step 0, 1, …: linear warm-up, then a cosine that reaches its floor at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    return config.lr * (
        config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
    )


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; only the weights of projections and embeddings decay: norms, gates, decays, biases and short
    convolutions keep their scale."""
    decaying = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if id(p) in decaying]
    others = [p for p in parameters if id(p) not in decaying]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def draw_batch(stream: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """``[tokens] -> [batch_size, seq_len + 1]``: windows of the stream at random places, int64."""
    starts = torch.randint(stream.numel() - config.seq_len, (config.batch_size,), generator=generator)
    return stream[starts[:, None] + torch.arange(config.seq_len + 1)].long()


def _train_mode(model: nn.Module, steps: int) -> Iterator[int]:
    """The steps, in training mode; evaluation mode afterwards, whatever happened."""
    model.train()
    try:
        yield from range(steps)
    finally:
        model.eval()


@wide_products()
def train_step(
    model: LanguageModel, optimizer: torch.optim.Optimizer, batch: Tensor, config: TrainConfig, step: int
) -> float:
    """One step on windows, batch ``[B, T + 1]``; the mean loss in nats. Raises TrainingError if it is not finite."""
    batch = batch.to(model.device)
    logits = model(batch[:, :-1]).logits
    loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
    return descend(model, optimizer, loss, config, step)


@wide_products()
def descend(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, config: TrainConfig, step: int
) -> float:
    """One step down a loss ``[]``, gradients clipped to ``config.clip``; its value. Raises TrainingError if not
    finite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"step {step + 1}: the loss is {value}; a lower lr (now {config.lr:g}) or a longer warmup "
            f"(now {config.warmup}) may help. The weights are those of the step before."
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    if not bool(torch.isfinite(norm)):
        raise TrainingError(
            f"step {step + 1}: the gradient norm is {float(norm)}; the weights were not changed."
        )
    optimizer.step()
    return value


def check_vocabulary(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Raises ConfigError for a model with fewer ids than its tokenizer."""
    needed, got = tokenizer.vocab_size, model.config.vocab_size
    if got < needed:
        of = " (bytes and the end of a document)" if isinstance(tokenizer, ByteTokenizer) else ""
        raise ConfigError(f"expected vocab_size >= {needed}{of}, as the tokenizer has, got {got}")


def progress_bar(shown: Progress | bool) -> AbstractContextManager[Progress]:
    """A bar of our own, or the caller's, which stays the caller's to close."""
    if isinstance(shown, Progress):
        return nullcontext(shown)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console(), disable=not shown)


def _log(result: TrainResult, step: int, config: TrainConfig) -> dict[str, float]:
    return {
        "loss": result.losses[-1],
        "bits_per_byte": _bits(result, result.losses[-1]),
        "lr": learning_rate(step, config),
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
    }


def _note(result: TrainResult) -> str:
    recent = result.losses[-20:]
    loss = sum(recent) / len(recent)
    return f"loss {loss:.3f}  {_bits(result, loss):.3f} bits/byte  {result.tokens_per_second:,.0f} tokens/s"


def _tokens_per_byte(stream: Tensor, corpus: Corpus, tokenizer: Tokenizer) -> float:
    """Without the ids around documents, which a text does not have."""
    around = {*tokenizer.ends, *([] if tokenizer.start is None else [tokenizer.start])}
    tokens = stream.numel() - sum(int((stream == token).sum()) for token in around)
    return tokens / max(1, sum(len(document.text) for document in corpus.train))


def _bits(result: TrainResult, loss: float) -> float:
    """Bits a byte of a loss in nats a token."""
    return loss / math.log(2) * result.tokens_per_byte
