"""The model of any folder, for streaming and scoring: linrec's own where it knows the format, else transformers'."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from linrec.errors import CheckpointError
from linrec.models.checkpoint import MODEL_TYPE, config_values
from linrec.models.formats.registry import format_of
from linrec.models.language_model import LanguageModel
from linrec.models.saved_weights import CONFIG_FILE

if TYPE_CHECKING:
    from linrec.integrations.transformers.stateful import StatefulModel

Named = str | os.PathLike[str]


class Readable(Protocol):
    """What evaluation asks of a model; :class:`~linrec.models.LanguageModel` has it."""

    config: Any

    def parameters(self) -> Iterator[Tensor]:
        """The weights."""

    def hidden(
        self,
        tokens: Tensor,
        state: Any = None,
        cu_seqlens: Any = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """What the head reads of tokens ``[B, T]``, ``[B, T, d_model]``, and the state after them; attention_mask
        ``[B, T]``, 1 = real token."""

    def logits(self, h: Tensor) -> Tensor:
        """``[..., d_model] -> [..., vocab_size]``."""

    def step(self, tokens: Tensor, state: Any) -> Any:
        """One token a row, tokens ``[B, 1]``: ``logits [B, 1, vocab_size]`` and ``state``."""

    def init_state(self, batch_size: int = 1) -> Any:
        """The empty state."""

    def fingerprint(self) -> str:
        """Equal exactly for models with the same weights."""


def load_any(
    folder: Named, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> LanguageModel | StatefulModel:
    """A :class:`~linrec.models.LanguageModel`, or a model of transformers that runs through linrec, its state a value.

    In evaluation mode. Raises CheckpointError for what neither reads, and for a model whose state cannot be forked.
    """
    values = config_values(folder)
    if values.get("model_type") == MODEL_TYPE or format_of(values) is not None:
        return LanguageModel.load(folder, device=device, dtype=dtype)
    return stateful(from_transformers(Path(folder)), device, dtype)


def stateful(
    model: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> StatefulModel:
    """A built model of transformers, from then on run through linrec."""
    from linrec.integrations.transformers.stateful import StatefulModel

    return StatefulModel(model.to(device=device, dtype=dtype)).eval()


def from_transformers(folder: Path) -> Any:
    """transformers' own model of a folder, in the saved precision; CheckpointError where it reads none."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: a format that needs the package transformers: pip install linrec[hf]"
        ) from error
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    # Whatever a modelling file raises about a folder that it cannot read.
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder}: neither linrec nor transformers reads this model ({said})"
        ) from error
