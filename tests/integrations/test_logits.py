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


PACKED = ("packed_by_positions", "packed_by_boundaries", "packed_by_numbers", "packed_rows")
PADDED = ("right_padding_then_one", "right_padding_then_several")
# What parts of a model that linrec does not compute get wrong by themselves: their attention, mostly, which these calls
# do not tell of padding or of documents. There the mixers alone cannot make it right.
ELSEWHERE = {
    **{("qwen4_exp", scenario): "sparse attention" for scenario in (*PACKED, *PADDED)},
    **{("glm5_next", scenario): "sparse attention" for scenario in (*PACKED, *PADDED)},
    **{("granitemoehybrid", scenario): "attention over all documents of a row" for scenario in PACKED},
    **{
        ("bamba", scenario): "attention of what continues a cache"
        for scenario in ("one_at_a_time", "several_at_a_time", "short_prompt")
    },
}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_each_sequence_alone(family: str, scenario: str) -> None:
    model, reference = pair(family)
    with torch.no_grad():
        error = SCENARIOS[scenario](model, reference)
    assert (error <= LIMIT) is ((family, scenario) not in ELSEWHERE)
