"""Small models for the tests of the lm-eval model."""

from __future__ import annotations

import pytest
import torch

from linrec.evals.small import byte_config
from linrec.models.language_model import LanguageModel
from tests.evals.wrapped import PATTERNS


@pytest.fixture(scope="module", params=PATTERNS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(byte_config(PATTERNS[request.param], d_model=32, num_heads=2, num_layers=2))
    with torch.no_grad():  # far from uniform, so that a wrong context cannot score the same
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p) * p.std(correction=0))
    return model.eval()
