"""Multipliers of embeddings, residuals and logits, and the cap of logits."""

from __future__ import annotations

from torch import Tensor


def scaled(x: Tensor, factor: float) -> Tensor:
    """factor x, x ``[...]``; x itself for a factor of one, because decoding multiplies nothing by it."""
    return x if factor == 1 else x * factor


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """cap tanh(logits / cap), logits ``[...]``,  Gemma 2 2024, arXiv:2408.00118; as they are without a cap."""
    return logits if cap is None else (logits / cap).tanh() * cap
