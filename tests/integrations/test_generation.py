"""Generated tokens are those of transformers where it is right, and of each prompt alone elsewhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from linrec.integrations.transformers import accelerate
from tests.integrations.families import FAMILIES, small_model
from tests.integrations.scenarios import documents, padded

# Transformers has no beam search for these two, whose caches it cannot reorder; MiniMax's beams are not yet the same.
WITHOUT_BEAMS = {"rwkv", "xlstm", "minimax"}
WAYS: dict[str, dict[str, Any]] = {"greedy": {}, "beams": {"num_beams": 3}}


def generated(model: Any, ids: Tensor, **ways: Any) -> Tensor:
    given = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **ways}
    return model.generate(ids, **given)[:, ids.shape[1] :]


def pair(family: str) -> tuple[nn.Module, nn.Module]:
    reference = small_model(family)
    model = copy.deepcopy(reference)
    accelerate(model)
    return model, reference


@pytest.mark.parametrize(
    ("family", "way"),
    [(family, way) for family in FAMILIES for way in WAYS if way == "greedy" or family not in WITHOUT_BEAMS],
)
def test_the_same_tokens(family: str, way: str) -> None:
    model, reference = pair(family)
    ids = documents((20,))[0][None]
    assert torch.equal(generated(model, ids, **WAYS[way]), generated(reference, ids, **WAYS[way]))


@pytest.mark.parametrize("family", ["qwen3_5", "kimi_linear", "mamba2"])
@pytest.mark.parametrize("way", WAYS)
def test_a_padded_batch_continues_as_each_prompt_alone(family: str, way: str) -> None:
    model, reference = pair(family)
    texts = documents((5, 33, 12))
    ids, mask = padded(texts, "left")
    got = generated(model, ids, attention_mask=mask, **WAYS[way])
    right = [generated(reference, text[None], **WAYS[way])[0] for text in texts]
    assert torch.equal(got, torch.stack(right))
