"""Engines whose path depends on values (how strong the decays are) run where there are no values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from linrec.rules import RULES
from linrec.testing import example_inputs

SIZES: dict[str, Any] = {"B": 1, "T": 40, "H": 1, "HV": 1, "K": 4, "V": 4}


@pytest.mark.parametrize("name", ["kimi_delta_attention", "rwkv7", "gated_delta_net"])
def test_a_graph_can_be_exported(name: str) -> None:
    rule = RULES[name]
    inputs = example_inputs(rule, **SIZES)

    class Model(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return rule(**dict(zip(inputs, tensors, strict=True)), chunk_size=32).o

    program = torch.export.export(Model(), tuple(inputs.values()))
    torch.testing.assert_close(program.module()(*inputs.values()), rule(**inputs).o)


def test_shapes_without_values() -> None:
    inputs = {n: x.to("meta") for n, x in example_inputs(RULES["kimi_delta_attention"], **SIZES).items()}
    assert RULES["kimi_delta_attention"](**inputs).o.shape == (1, 40, 1, 4)
