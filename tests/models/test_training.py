"""Training learns, repeats itself, and says when it cannot go on; bits per byte against a plain sum."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from rich.progress import Progress, TextColumn

from linrec import models
from linrec.errors import ConfigError
from linrec.models.training import TrainingError, learning_rate, make_optimizer

CORPUS = models.Corpus(
    [models.Document("a", b"def f(x): return x\n" * 40)], [models.Document("b", b"def g(x): return x\n")]
)
SHORT = models.TrainConfig(steps=25, batch_size=4, seq_len=32, lr=1e-2, warmup=5)


def tiny(seed: int = 0) -> models.LanguageModel:
    torch.manual_seed(seed)
    pattern = ("gated_delta_net", "softmax_attention")
    return models.LanguageModel(models.Config(d_model=32, num_heads=2, pattern=pattern))


def test_learns_and_repeats_itself() -> None:
    model = tiny()
    first = models.train(model, CORPUS, SHORT)
    assert first.losses[0] == pytest.approx(math.log(257), abs=0.3)
    assert first.losses[-1] < 0.5 * first.losses[0]
    assert not model.training
    assert models.train(tiny(), CORPUS, SHORT).losses == first.losses
    assert first.tokens_per_second == pytest.approx(25 * 4 * 32 / first.seconds)


@torch.no_grad()
def test_bits_per_byte_is_the_mean_over_all_bytes() -> None:
    model = tiny()
    documents = [models.Document(str(n), bytes(range(n, 2 * n))) for n in (1, 30, 57)]
    bits = total = 0.0
    for document in documents:
        ids = torch.tensor([[256, *document.text]])
        logp = model(ids[:, :-1]).logits.log_softmax(-1)
        bits -= logp.gather(2, ids[:, 1:, None]).sum().item() / math.log(2)
        total += len(document.text)
    for chunk, batch_size in ((7, 2), (512, 8)):
        measured = models.bits_per_byte(model, documents, chunk=chunk, batch_size=batch_size)
        assert measured == pytest.approx(bits / total, rel=1e-4)


def test_a_loss_that_is_not_a_number() -> None:
    model = tiny()
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan"):
        models.train(model, CORPUS, SHORT)
    assert not model.training


def test_only_matrices_decay() -> None:
    model = tiny()
    decayed, kept = make_optimizer(model, SHORT).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert not [names[id(p)] for p in decayed["params"] if "norm" in names[id(p)]]
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_learning_rate() -> None:
    config = models.TrainConfig(steps=100, warmup=10, lr=1.0, min_lr_ratio=0.1)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_progress_and_log() -> None:
    text, seen = io.StringIO(), {}
    with Progress(TextColumn("{task.fields[note]}"), console=Console(file=text, width=120)) as bar:
        models.train(
            tiny(), CORPUS, SHORT, progress=bar, on_log=lambda step, values: seen.update({step: values})
        )
    assert list(seen) == [10, 20, 25]
    assert seen[25]["bits_per_byte"] == pytest.approx(seen[25]["loss"] / math.log(2))
    assert "bits/byte" in text.getvalue()


@pytest.mark.parametrize("field", ["steps", "batch_size", "lr", "clip"])
def test_refuses_settings(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(SHORT, **{field: 0})  # type: ignore[arg-type]


def test_refuses_corpora_and_vocabularies() -> None:
    with pytest.raises(ConfigError, match="seq_len"):
        models.train(tiny(), CORPUS, models.TrainConfig(seq_len=5000))
    with pytest.raises(ConfigError, match="at least one byte"):
        models.bits_per_byte(tiny(), [])
    with pytest.raises(ConfigError, match="vocab_size >= 257"):
        models.train(models.LanguageModel(models.Config(vocab_size=256, d_model=16)), CORPUS, SHORT)
