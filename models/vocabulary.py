"""The embeddings and the head of a transformers model around a language model, and another size of vocabulary."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from linrec.errors import ConfigError
from linrec.models.language_model import LanguageModel


class ResizableVocabulary:
    """transformers' methods for input and output embeddings; stands before their classes among the bases."""

    model: LanguageModel
    config: Any

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings."""
        return self.model.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another module in their place."""
        self.model.embed = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        """The head, whose weight is that of the embeddings where the configuration ties them."""
        return self.model.head

    def set_output_embeddings(self, value: nn.Module | None) -> None:
        """Raises ConfigError for a head of its own where the configuration ties it to the embeddings."""
        if self.model.tied:
            if value is not None and getattr(value, "weight", None) is not self.model.embed.weight:
                raise ConfigError(
                    "set_output_embeddings: this model's embeddings are its head (tie_embeddings)"
                )
            return
        self.model.head = value  # type: ignore[assignment]

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """The model ties its own head; transformers asks for it once the weights are there."""
        super().tie_weights(*args, **kwargs)  # type: ignore[misc]
        if isinstance(getattr(self, "model", None), LanguageModel):
            self.model.tie()

    def _resize_token_embeddings(
        self, new_num_tokens: int, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        if not self.model.tied:
            arguments = (new_num_tokens, pad_to_multiple_of, mean_resizing)
            return super()._resize_token_embeddings(*arguments)  # type: ignore[misc]
        before = self.get_input_embeddings()
        resized = self._get_resized_embeddings(before, new_num_tokens, pad_to_multiple_of, mean_resizing)  # type: ignore[attr-defined]
        resized.requires_grad_(before.get_parameter("weight").requires_grad)
        self.set_input_embeddings(resized)
        self.model.tie()
        self.model.head.out_features = resized.num_embeddings
        return resized

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Another ``vocab_size``, for the configuration too; see transformers for the values of new rows.

        With ``mean_resizing=False`` they are normal with ``init_std``. Raises ConfigError where a special token would
        lie outside.
        """
        before = self.model.config.vocab_size
        size = before if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        config = dataclasses.replace(self.model.config, vocab_size=size)
        arguments = (new_num_tokens, pad_to_multiple_of, mean_resizing)
        embeddings: nn.Module = super().resize_token_embeddings(*arguments)  # type: ignore[misc]
        self.model.config, self.config.vocab_size = config, size
        self.model.tie()
        for module in (embeddings,) if self.model.tied else (embeddings, self.model.head):
            if size > before and not mean_resizing:
                nn.init.normal_(module.get_parameter("weight")[before:].detach(), std=config.init_std)
        return embeddings
