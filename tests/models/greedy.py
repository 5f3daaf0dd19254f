"""The likeliest continuation, by full forward passes of the plain model alone."""

from __future__ import annotations

import torch
from torch import Tensor

from linrec import models

NEW = 12


def greedy(model: models.LanguageModel, ids: Tensor, steps: int = NEW) -> Tensor:
    """``ids [B, T]`` and ``steps`` more columns."""
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids
