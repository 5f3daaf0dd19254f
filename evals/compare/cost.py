"""What a mixer costs: training and decoding speed, all mixers in turn so that they share the machine's moods."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress

from linrec.donation import donation
from linrec.evals.small import END, state_bytes_after
from linrec.models.config import Config
from linrec.models.language_model import LanguageModel
from linrec.models.training import TrainConfig, make_optimizer, train_step

ROUNDS = 5
DECODED = 32


@dataclass(frozen=True)
class CostJob:
    """The models to time: training steps of the comparison's shape, decoding of one row after ``seq_len`` tokens."""

    models: dict[str, Config]
    training: TrainConfig
    context: int
    threads: int
    device: str

    def describe(self) -> dict[str, Any]:
        """All that was asked for; the machine is another matter."""
        return {
            "kind": "cost",
            "models": {mixer: config.to_dict() for mixer, config in self.models.items()},
            "batch_size": self.training.batch_size,
            "seq_len": self.training.seq_len,
            "context": self.context,
            "threads": self.threads,
            "device": self.device,
        }

    def measure(self, bar: Progress) -> dict[str, dict[str, float]]:
        """``{mixer: {train_tokens_per_second, decode_tokens_per_second, state_bytes}}``; best of the rounds."""
        built = {mixer: LanguageModel(config).to(self.device) for mixer, config in self.models.items()}
        training = {mixer: self._training(model) for mixer, model in built.items()}
        decoding = {mixer: self._decoding(model) for mixer, model in built.items()}
        best = {mixer: [float("inf"), float("inf")] for mixer in built}
        task = bar.add_task("timing", total=ROUNDS + 1, note="")
        for number in range(ROUNDS + 1):  # the first warms up
            for mixer in built:
                times = training[mixer](), decoding[mixer]()
                if number:
                    best[mixer] = [min(a, b) for a, b in zip(best[mixer], times, strict=True)]
            bar.advance(task)
        bar.remove_task(task)
        tokens = self.training.batch_size * self.training.seq_len
        return {
            mixer: {
                "train_tokens_per_second": tokens / best[mixer][0],
                "decode_tokens_per_second": DECODED / best[mixer][1],
                "state_bytes": state_bytes_after(model, [self.context])[0],
            }
            for mixer, model in built.items()
        }

    def _training(self, model: LanguageModel) -> Callable[[], float]:
        optimizer = make_optimizer(model, self.training)
        shape = (self.training.batch_size, self.training.seq_len + 1)
        batch = torch.randint(END, shape, generator=torch.Generator().manual_seed(0)).to(self.device)

        def step() -> float:
            started = time.perf_counter()
            train_step(model.train(), optimizer, batch, self.training, 0)
            self._wait()
            return time.perf_counter() - started

        return step

    def _decoding(self, model: LanguageModel) -> Callable[[], float]:
        prompt = torch.randint(END, (1, self.training.seq_len), generator=torch.Generator().manual_seed(0))
        prompt = prompt.to(self.device)

        def decode() -> float:
            with torch.inference_mode():
                logits, state = model.eval().prefill(prompt)
                self._wait()
                started = time.perf_counter()
                for _ in range(DECODED):
                    with donation(state):
                        logits, state = model.step(logits.argmax(-1), state)
                self._wait()
                return time.perf_counter() - started

        return decode

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
