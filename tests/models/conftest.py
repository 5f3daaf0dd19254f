"""Small models that the tests of this folder share."""

from __future__ import annotations

import pytest
import torch

from linrec import models

HYBRID = ("gated_delta_net", "softmax_attention", "mamba2")


@pytest.fixture
def hybrid() -> models.LanguageModel:
    """Weights large enough that the likeliest token depends on the whole context."""
    torch.manual_seed(0)
    config = models.Config(
        vocab_size=97, d_model=32, num_heads=2, init_std=0.3, pattern=HYBRID, eos_token_id=96
    )
    return models.LanguageModel(config).eval()
