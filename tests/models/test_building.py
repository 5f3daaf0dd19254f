"""Building for weights at hand: no honest model comes near the limit, and what passes it is never made."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from linrec import models
from linrec.errors import CheckpointError
from linrec.layers import LAYERS
from linrec.models.building import build
from tests.crashes import fork, wait


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_takes_about_its_weights(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("linrec.models.building.SMALL", 0)
    config = models.Config(vocab_size=11, pattern=(layer,), d_model=256, num_heads=4)
    with torch.device("meta"):
        expected = models.LanguageModel(config).state_dict()
    elements = sum(tensor.numel() for tensor in expected.values())
    made = build(models.LanguageModel, config, elements // 2).state_dict()  # the limit is four times this
    assert {n: t.shape for n, t in made.items()} == {n: t.shape for n, t in expected.items()}
    with pytest.raises(CheckpointError, match="larger than its weights"):
        build(models.LanguageModel, config, elements // 5)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads this process's size from /proc")
@pytest.mark.parametrize("options", [{"head_dim": 10**6}, {"num_v_heads": 10**6}, {"conv_size": 10**8}])
def test_what_is_larger_is_never_made(options: dict[str, int]) -> None:
    """With half a gigabyte of address space to go, an attempt to make it would say so."""
    config = models.Config(layer_options={"gated_delta_net": options})

    def limited() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 2**29
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        with pytest.raises(CheckpointError, match="larger than its weights"):
            build(models.LanguageModel, config, 1000)

    assert wait(fork(limited)) == 0
