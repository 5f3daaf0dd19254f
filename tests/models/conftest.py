"""Small models that the tests of this folder share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

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


@pytest.fixture
def prompt() -> Tensor:
    return torch.randint(1, 96, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def face(hybrid: models.LanguageModel) -> Any:
    """The same model for transformers, which never ends a text by itself."""
    pytest.importorskip("transformers")
    from linrec.models.huggingface import LinrecForCausalLM

    face = LinrecForCausalLM.from_linrec(hybrid)
    face.generation_config.eos_token_id = None
    face.generation_config.pad_token_id = 0
    return face
