"""The demo end to end with tiny settings, and the figures it compares."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import pytest
import torch
from rich.console import Console
from torch import Tensor

from linrec.evals import demo
from linrec.evals.harness.tasks.stdlib import held_out_modules
from linrec.evals.small import byte_config, parameters, same_size, stream_text
from linrec.models.corpus import standard_library
from linrec.models.language_model import LanguageModel
from linrec.stream import Session


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SETTINGS", replace(demo.SETTINGS, batch_size=2, seq_len=64))
    monkeypatch.setattr(demo, "WIDTH", 32)
    monkeypatch.setattr(demo, "DOCUMENTS", {"max_document_bytes": 900})
    monkeypatch.setattr(demo, "QUESTIONS", 8)
    monkeypatch.setattr(demo, "CONTEXTS", (16, 32, 64))


@pytest.mark.usefixtures("tiny")
def test_demo_writes_checkpoints_metrics_and_picture(tmp_path: Path) -> None:
    metrics = demo.run_demo(tmp_path, steps=10, minutes=100)
    assert {path.name for path in tmp_path.iterdir()} == {"hybrid", "softmax", "metrics.json", "demo.png"}
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert matplotlib.image.imread(tmp_path / "demo.png").shape == (767, 2210, 4)
    assert metrics["completion"]["text"]
    for key in ("hybrid", "softmax"):
        model = LanguageModel.load(tmp_path / key)
        assert parameters(model) == metrics["models"][key]["parameters"]
        assert len(metrics["models"][key]["losses"]) == 10
        assert metrics["scores"][key]["carried"]["bits_per_byte"] > 0
        assert 0 <= metrics["scores"][key]["choice"]["acc"] <= 1
    for bar in metrics["bits_per_byte"]:
        assert 0 < bar["value"] < 12


@pytest.mark.usefixtures("tiny")
def test_state_bytes_are_those_of_the_states() -> None:
    hybrid = byte_config(demo.HYBRID, d_model=32, num_heads=2)
    curves = demo.measure_state_bytes(
        {"hybrid": hybrid, "softmax": same_size(hybrid, ("softmax_attention",))}
    )
    sizes = {key: curve["bytes"] for key, curve in curves["curves"].items()}
    assert len(set(sizes["recurrent"])) == 1, "a recurrent state does not grow"
    per_token = 2 * 32 * 4  # keys and values of one layer, float32
    for key, layers in (("softmax", 4), ("hybrid", 1)):
        first, second, third = sizes[key]
        assert (second - first, third - second) == (16 * per_token * layers, 32 * per_token * layers)


@pytest.mark.parametrize("width", [64, 128])
def test_the_baseline_has_the_same_size(width: int) -> None:
    hybrid = byte_config(demo.HYBRID, d_model=width, num_heads=2)
    softmax = same_size(hybrid, ("softmax_attention",))
    assert set(softmax.layer_names) == {"softmax_attention"}
    counts = [parameters(LanguageModel(config)) for config in (hybrid, softmax)]
    assert abs(counts[0] - counts[1]) < 0.02 * counts[0]


class Blanks:
    """A model that follows a blank with a blank nine times of ten, and with one of ten letters otherwise."""

    def prefill(self, tokens: Tensor, state: Any = None) -> Any:
        p = torch.full((257,), 1e-9)
        p[ord(" ")], p[ord("a") : ord("a") + 10] = 0.9, 0.01
        return SimpleNamespace(logits=p.log().expand(1, tokens.shape[1], -1), state=torch.zeros(1))

    step = prefill

    def init_state(self, batch_size: int = 1) -> Any:
        return torch.zeros(batch_size)

    def fingerprint(self) -> str:
        return ""


@pytest.mark.parametrize("seed", range(5))
def test_sampling_finds_the_way_out_of_an_indentation(seed: int) -> None:
    text = "".join(stream_text(Session(Blanks(), seed=seed), "    ", demo.STREAMED, **demo.SAMPLING))
    assert len(text) == demo.STREAMED and max(map(len, re.findall(" +", text))) < demo.STREAMED / 3


def test_compressors_take_each_scored_document_alone() -> None:
    found = demo.compressors()
    texts = [m.text.encode() for m in held_out_modules(**demo.DOCUMENTS)]
    assert found["bytes"] == sum(map(len, texts))
    sizes = [8 * len(gzip.compress(t, 9, mtime=0)) for t in texts]
    assert found["gzip"] == pytest.approx(sum(sizes) / found["bytes"])


def test_a_slow_machine_gets_fewer_steps_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timed:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

    def slow(model: Any, corpus: Any, settings: Any) -> Timed:
        return Timed(0.5 * settings.steps)

    monkeypatch.setattr(demo, "train", slow)
    configs = {name: byte_config(("gla",), d_model=32, num_heads=2) for name in ("hybrid", "softmax")}
    corpus, console = standard_library(), Console(quiet=True)
    budget = 60 * 4 - demo.OVERHEAD_SECONDS
    assert demo.affordable_steps(configs, corpus, 10, 4.0, console) == 10
    assert demo.affordable_steps(configs, corpus, 10_000, 4.0, console) == int(budget)
