"""Accelerated models against each sequence alone through transformers' own functions."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn

from linrec.integrations.transformers import accelerate
from tests.integrations.families import FAMILIES, small_model
from tests.integrations.scenarios import SCENARIOS

LIMIT = 2e-5


@cache
def pair(family: str) -> tuple[nn.Module, nn.Module]:
    reference = small_model(family)
    model = copy.deepcopy(reference)
    accelerate(model)
    return model, reference


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_each_sequence_alone(family: str, scenario: str) -> None:
    with torch.no_grad():
        assert SCENARIOS[scenario](*pair(family)) <= LIMIT
