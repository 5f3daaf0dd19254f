"""A head whose weight is the embedding's: one parameter in two modules, stored once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Vocabulary(nn.Module):
    """``embed`` at one end of a model and ``head`` at the other, tied or not.

    A tied head is a module all the same, which is called, hooked and replaced as any other. Its weight is the
    embedding's parameter, which has one name in a state dict, ``embed.weight``. Whatever gives the embedding another
    parameter gives it to the head; a head that somebody puts in its place is on its own.
    """

    _tied_head: nn.Module | None

    def __init__(self, size: int, width: int):
        super().__init__()
        self.embed = nn.Embedding(size, width)

    def add_head(self, tied: bool) -> None:
        """The head, after everything else: parameters have their order in a checkpoint's fingerprint."""
        size, width = self.embed.num_embeddings, self.embed.embedding_dim
        # The tied head's own weight is thrown away at once, and takes neither memory nor random numbers.
        self.head = nn.Linear(width, size, bias=False, device="meta" if tied else None)
        # Known by what it is: a copy of it that is put in its place, or what stands around it, is on its own.
        object.__setattr__(self, "_tied_head", self.head if tied else None)
        self.tie()
        self.register_state_dict_post_hook(_stored_once)
        self.register_load_state_dict_pre_hook(_loaded_twice)
        self.register_load_state_dict_post_hook(_tied_again)

    @property
    def tied(self) -> bool:
        """Whether the head reads the embedding."""
        head: nn.Module = self.head
        return head is self._tied_head and "weight" in head._parameters

    @property
    def device(self) -> torch.device:
        """Where the embedding is, and so where tokens must be."""
        return self._parameter().device

    @property
    def dtype(self) -> torch.dtype:
        """That of the embedding."""
        return self._parameter().dtype

    def tie(self) -> None:
        """The embedding's parameter for a tied head."""
        if self.tied:
            weight = getattr(self.embed, "weight", None)
            if isinstance(weight, nn.Parameter) and weight is not self.head.weight:
                self.head.weight = weight

    def _parameter(self) -> Tensor:
        own = next(self.embed.parameters(), None)  # a quantised embedding has none
        return next(self.parameters()) if own is None else own

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Vocabulary:
        """What moves or converts a model may give each of its modules a parameter of its own."""
        super()._apply(fn, recurse)
        self.tie()
        return self


def _stored_once(model: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    if model.tied:
        state.pop(prefix + "head.weight", None)


def _loaded_twice(model: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if model.tied and prefix + "embed.weight" in state:
        state.setdefault(prefix + "head.weight", state[prefix + "embed.weight"])


def _tied_again(model: Any, _: Any) -> None:
    model.tie()
