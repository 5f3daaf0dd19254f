"""The configuration of the language model as transformers' tools read it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from linrec.errors import ConfigError
from linrec.models.checkpoint import MODEL_TYPE
from linrec.models.config import Config, check_name

DERIVED = ("vocab_size", "tie_word_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads")
ALSO_KNOWN = ("output_attentions", "attn_implementation", "name_or_path", "num_labels", "torch_dtype")


class LinrecConfig(PreTrainedConfig):
    """Holds a :class:`~linrec.models.Config` as plain values in ``linrec``; make one with ``from_linrec``.

    Raises ConfigError for a field of ``linrec`` that is given beside it with another value, or at the wrong place.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache"]

    linrec: dict[str, Any] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.linrec = Config.from_dict(self.linrec or {}).to_dict()
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, self.linrec[name])
        for name in DERIVED:
            if (value := kwargs.pop(name, None)) is not None and value != getattr(self, name):
                raise ConfigError(f"{name}: expected {getattr(self, name)}, as in linrec, got {value!r}")
        for field in dataclasses.fields(Config):
            if field.name in kwargs:
                raise ConfigError(f"{field.name}: expected inside linrec={{...}}, got it beside it")
        super().__post_init__(**kwargs)

    @classmethod
    def from_linrec(cls, config: Config, **kwargs: Any) -> LinrecConfig:
        """``kwargs``: fields of transformers' configurations. Raises ConfigError for other names."""
        known = [f.name for f in dataclasses.fields(cls) if f.name != "linrec"]
        for name in kwargs:
            check_name(name, [*known, *DERIVED, *ALSO_KNOWN], "config: field")
        return cls(linrec=config.to_dict(), **kwargs)

    def to_linrec(self) -> Config:
        """Raises ConfigError for values that do not fit."""
        return Config.from_dict(copy.deepcopy(self.linrec or {}))

    # What tools look for under the usual names; derived, so that they cannot disagree with ``linrec``.
    @property
    def vocab_size(self) -> int:
        """Ids of tokens."""
        return self.to_linrec().vocab_size

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self.linrec = dataclasses.replace(self.to_linrec(), vocab_size=size).to_dict()

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head is the embeddings' transpose."""
        return self.to_linrec().tie_embeddings

    @property
    def hidden_size(self) -> int:
        """``d_model``."""
        return self.to_linrec().d_model

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the pattern, with its repetitions."""
        return len(self.to_linrec().layer_names)

    @property
    def num_attention_heads(self) -> int:
        """``num_heads``."""
        return self.to_linrec().num_heads
