"""The Hugging Face face of the language model: ``AutoConfig``, ``AutoModelForCausalLM`` and ``generate``.

Importing this module registers the classes. ``generate`` carries the recurrent state under the name
``state``, from step to step, without looking inside.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput as HfOutput

from linrec.errors import ConfigError
from linrec.models.checkpoint import MODEL_TYPE
from linrec.models.config import Config
from linrec.models.language_model import LanguageModel, ModelState
from linrec.state import select_rows


class LinrecConfig(PreTrainedConfig):
    """Holds a :class:`~linrec.models.Config` as plain values in ``linrec``; make one with ``from_linrec``."""

    model_type = MODEL_TYPE

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
        kwargs.pop("tie_word_embeddings", None)
        super().__post_init__(**kwargs)

    @classmethod
    def from_linrec(cls, config: Config, **kwargs: Any) -> LinrecConfig:
        return cls(linrec=config.to_dict(), **kwargs)

    def to_linrec(self) -> Config:
        """Raises ConfigError for values that do not fit."""
        return Config.from_dict(copy.deepcopy(self.linrec or {}))

    # What tools look for under the usual names; derived, so that they cannot disagree with ``linrec``.
    @property
    def vocab_size(self) -> int:
        return self.to_linrec().vocab_size

    @property
    def hidden_size(self) -> int:
        return self.to_linrec().d_model

    @property
    def num_hidden_layers(self) -> int:
        return len(self.to_linrec().layer_names)

    @property
    def num_attention_heads(self) -> int:
        return self.to_linrec().num_heads


@dataclass
class LinrecOutput(HfOutput):
    """``loss`` where labels were given, ``logits [B, T, vocab_size]`` and the state after the last token."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: ModelState | None = None


class LinrecForCausalLM(PreTrainedModel, GenerationMixin):
    """:class:`~linrec.models.LanguageModel` as a transformers model; ``.model`` is the plain one."""

    config_class = LinrecConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True  # a recurrent state cannot step back, which assisted generation would need
    _no_split_modules = ("Block",)

    def __init__(self, config: LinrecConfig):
        super().__init__(config)
        self.model = LanguageModel(config.to_linrec())
        self.post_init()

    @classmethod
    def from_linrec(cls, model: LanguageModel) -> LinrecForCausalLM:
        """Wrap a model; its weights are shared, not copied."""
        with torch.device("meta"):
            wrapped = cls(LinrecConfig.from_linrec(model.config))
        wrapped.model = model
        wrapped.config.dtype = model.dtype
        return wrapped.eval() if not model.training else wrapped

    @classmethod
    def get_init_context(cls, *args: Any, **kwargs: Any) -> list[Any]:
        """Build with real tensors: layers may compute constants that a checkpoint does not hold."""
        contexts = super().get_init_context(*args, **kwargs)
        return [c for c in contexts if not (isinstance(c, torch.device) and c.type == "meta")]

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: LanguageModel initialises itself."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed = value  # type: ignore[assignment]

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """The model ties its own head; transformers asks for it once the weights are there."""
        super().tie_weights(*args, **kwargs)
        if isinstance(getattr(self, "model", None), LanguageModel):
            self.model.tie()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.model.head

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        raise ConfigError(
            "resize_token_embeddings is not supported: make a model with the vocab_size it needs"
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        state: ModelState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> LinrecOutput | tuple[Any, ...]:
        """``state`` continues a sequence; ``labels`` are shifted inside, -100 is ignored."""
        h, new_state = self.model.hidden(input_ids, state, attention_mask=attention_mask)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.logits(h if isinstance(keep, slice) and keep.start == 0 else h[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        use_cache = self.config.use_cache if use_cache is None else use_cache
        output = LinrecOutput(loss=loss, logits=logits, state=new_state if use_cache else None)
        return output if return_dict is not False else output.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        state: ModelState | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if state is not None:
            inputs["state"] = state
            if not is_first_iteration:
                inputs.pop("attention_mask", None)  # the new token of every row is real; padding is behind us
        return inputs

    def _update_model_kwargs_for_generation(
        self, outputs: HfOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        # Which outputs transformers itself hands on, and under what names, changes from version to version.
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        if outputs.get("state") is not None:
            updated["state"] = outputs["state"]
        return updated

    def _reorder_cache(self, state: ModelState, beam_idx: Tensor) -> ModelState:
        return select_rows(state, beam_idx)


AutoConfig.register(MODEL_TYPE, LinrecConfig, exist_ok=True)
AutoModelForCausalLM.register(LinrecConfig, LinrecForCausalLM, exist_ok=True)
