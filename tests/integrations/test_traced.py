"""Accelerated models under ``torch.compile``: whole graphs, and right where values may not be looked at."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from linrec.integrations.transformers import accelerate, restore
from tests.integrations.families import small_model
from tests.integrations.scenarios import SCENARIOS

TRACED = ("batch", "one_at_a_time", "right_padding_then_one", "packed_by_boundaries")


@pytest.mark.slow
@pytest.mark.parametrize("scenario", TRACED)
@pytest.mark.parametrize("family", ["qwen3_5", "kimi_linear"])
def test_a_graph_has_no_break(family: str, scenario: str) -> None:
    reference = small_model(family)
    model = copy.deepcopy(reference)
    accelerate(model)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert SCENARIOS[scenario](compiled, reference) <= 2e-5
    restore(model)
