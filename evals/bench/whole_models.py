"""Whole models of transformers, with and without :func:`linrec.integrations.transformers.accelerate`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from linrec.evals.bench.families import build
from linrec.evals.bench.measure import side_by_side


def rows(quick: bool, rounds: int, families: Sequence[str]) -> list[dict[str, Any]]:
    """Prompt, one token and training step of every family: first the comparison, then the times."""
    with _quiet():
        return [row for family in families for row in family_rows(family, quick, rounds)]


def family_rows(family: str, quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Three rows: a prompt, one token behind it, and a training step (forward and backward, no optimizer)."""
    from linrec.integrations.transformers import accelerate

    theirs = build(family, quick)
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    length, tokens = (70, 2) if quick else (1024, 16)
    config = theirs.config
    ids = torch.randint(3, config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    row = {
        "case": family,
        "shape": f"{config.num_hidden_layers} layers of width {config.hidden_size}",
        "peer": "transformers",
    }
    works: list[tuple[str, Callable[[Any], Callable[[], Tensor]], int]] = [
        (f"prompt, T={length}", lambda model: partial(_prompt, model, ids), 1),
        ("one token", lambda model: _Decoding(model, ids[:, :64], tokens), tokens),
        (f"training, T={length // 2}", lambda model: partial(_trained, model, ids[:, : length // 2]), 1),
    ]
    found = []
    for name, work, count in works:
        mine, other = work(ours), work(theirs)
        result = [(mine(), other())]
        found.append(
            side_by_side(row | {"pass": name}, result, {"ours": mine, "theirs": other}, rounds, count)
        )
    return found


@torch.no_grad()
def _prompt(model: Any, ids: Tensor) -> Tensor:
    """Its logits."""
    return model(ids, use_cache=True).logits


class _Decoding:
    """The logits of greedy tokens behind a prompt; every call goes on where the last one stopped."""

    def __init__(self, model: Any, ids: Tensor, tokens: int):
        self.model, self.tokens = model, tokens
        with torch.no_grad():
            self.output = model(ids, use_cache=True)
        names = ("cache", "past_key_values", "state")  # or none, where the model keeps it to itself
        self.cache = next((name for name in names if self.output.get(name) is not None), None)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        every = []
        for _ in range(self.tokens):
            token = self.output.logits[:, -1].argmax(-1, keepdim=True)
            cache = {} if self.cache is None else {self.cache: self.output[self.cache]}
            self.output = self.model(token, use_cache=True, **cache)
            every.append(self.output.logits)
        return torch.cat(every, 1)


def _trained(model: Any, ids: Tensor) -> Tensor:
    """The loss and the gradient of the embedding."""
    model.train()
    model.zero_grad()
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    model.eval()
    return torch.cat([loss.detach()[None], model.get_input_embeddings().weight.grad.flatten()])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' advice to install other packages for what is timed here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
