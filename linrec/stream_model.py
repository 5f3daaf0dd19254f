"""What a session asks of a model, and the ids that it hands it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from linrec.errors import DtypeError, ShapeError


class StreamModel(Protocol):
    """What a session asks of a model; ``linrec.models.LanguageModel`` has it."""

    def prefill(self, tokens: Tensor, state: Any = None) -> Any:
        """tokens ``[B, T]``: ``logits`` of the last one ``[B, 1, vocab_size]`` and the ``state`` after it."""

    def step(self, tokens: Tensor, state: Any) -> Any:
        """The same for one more token, tokens ``[B, 1]``."""

    def init_state(self, batch_size: int = 1) -> Any:
        """The empty state."""

    def fingerprint(self) -> str:
        """Equal exactly for models with the same weights."""


def token_row(tokens: Sequence[int] | Tensor | int) -> Tensor:
    """An id, several, or ``tokens [T]`` as a row ``[1, T]`` of int64; the model checks that they exist.

    Raises DtypeError for what are no ids and ShapeError for more than one sequence.
    """
    if isinstance(tokens, int):
        tokens = [tokens]
    try:
        ids = tokens if isinstance(tokens, Tensor) else torch.tensor(list(tokens))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"feed: expected token ids, got {type(tokens).__name__} ({error})") from error
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise DtypeError(f"feed: expected integer token ids, got {ids.dtype}")
    if ids.dim() == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.dim() != 1:
        raise ShapeError(f"feed: expected one sequence of ids, [T] or [1, T], got {list(ids.shape)}")
    return ids.long()[None]
