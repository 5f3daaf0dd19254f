"""The Hugging Face face of the language model: ``generate``, and the classes behind transformers' ``Auto`` ones.

Importing this module registers the classes. Between its steps ``generate`` hands a
:class:`~linrec.models.read_cache.LinrecCache` round under transformers' name ``cache``; ``state``, ``past_key_values``
and ``cache_params`` are other names for it.
"""

from __future__ import annotations

import copy
import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import ModelOutput as HfOutput

from linrec.errors import ArgumentError, CheckpointError, DtypeError, ShapeError
from linrec.models import forward_arguments
from linrec.models.byte_tokenizer import END, TOKENIZER_FILE, byte_tokenizer
from linrec.models.checkpoint import (
    MODEL_TYPE,
    check_sizes,
    read_config,
    unfinished_config,
)
from linrec.models.documents import Described, Documents, find_documents
from linrec.models.generation import CachedGeneration, one_cache
from linrec.models.huggingface_config import LinrecConfig
from linrec.models.language_model import LanguageModel, ModelState
from linrec.models.read_cache import LinrecCache
from linrec.models.reading import Read, read_documents, read_rows
from linrec.models.recompute import Recomputing
from linrec.models.saved_weights import INDEX_FILE, WEIGHTS_FILE
from linrec.models.vocabulary import ResizableVocabulary

__all__ = ["LinrecCache", "LinrecConfig", "LinrecForCausalLM", "LinrecOutput", "LinrecTokenizer"]


@dataclass
class LinrecOutput(HfOutput):
    """``loss`` where labels were given, ``logits [B, T, vocab_size]``, the ``cache`` after the last token and, if
    asked for, ``hidden_states``: the embeddings, each block's output, the last one after the final norm."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache: LinrecCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    @property
    def state(self) -> ModelState | None:
        """The state in ``cache``, which knows the tokens it has read."""
        return None if self.cache is None else self.cache.state


class LinrecForCausalLM(Recomputing, ResizableVocabulary, CachedGeneration, PreTrainedModel, GenerationMixin):
    """:class:`~linrec.models.LanguageModel` as a transformers model; ``.model`` is the plain one."""

    config_class = LinrecConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
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
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any
    ) -> LinrecForCausalLM:
        """As of every model. Where a save was cut off before its ``config.json``, the weights' own one counts.

        Raises CheckpointError, before anything is allocated, where the configuration does not have the weights' sizes.
        """
        values = _unfinished(pretrained_model_name_or_path)
        if values is not None:
            own = LinrecConfig.from_dict(values)
            config = copy.deepcopy(config) if isinstance(config, LinrecConfig) else own
            config.linrec, config.dtype = own.linrec, own.dtype
        if _holds_weights(pretrained_model_name_or_path) and not kwargs.get("ignore_mismatched_sizes"):
            given = config.to_linrec() if isinstance(config, LinrecConfig) else None
            check_sizes(pretrained_model_name_or_path, given)
        model: LinrecForCausalLM = super().from_pretrained(
            pretrained_model_name_or_path, *args, config=config, **kwargs
        )
        return model

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

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        state: ModelState | LinrecCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        *,
        cache: LinrecCache | ModelState | None = None,
        past_key_values: LinrecCache | ModelState | None = None,
        cache_params: LinrecCache | ModelState | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> LinrecOutput | tuple[Any, ...]:
        """Logits of tokens, ``input_ids [B, T]``, or of ``inputs_embeds [B, T, d_model]`` in their stead.

        ``cache`` (or one of its other names) continues a sequence; ``attention_mask`` may then cover what was read as
        well. Restarting ``position_ids [B, T]``, ``seq_idx [B, T]``, ``cu_seq_lens_q, cu_seq_lens_k [S + 1]`` and
        ``cu_seqlens`` say where documents of a packed row begin: each is then as if it were alone, and the cache has
        a row for each.

        ``labels [B, T]`` are shifted inside and -100 is ignored. The first token of a packed document is no target of
        the last one before it, whatever its label: transformers' models would learn it unless the collator masks it.
        The loss is the mean over the labels that count, or their sum over ``num_items_in_batch []``.
        ``logits_to_keep`` of the last columns are returned (0: all), or those numbered ``logits_to_keep [n]``.

        Raises ArgumentError for a keyword that is not known or cannot be honoured, and for contradictions.
        """
        options = forward_arguments.loss_options(kwargs, KEYWORDS, labels, num_items_in_batch)
        names = {"cache": cache, "state": state, "past_key_values": past_key_values}
        given = one_cache({**names, "cache_params": cache_params})[0] or LinrecCache()
        x = self._embedded(input_ids, inputs_embeds)
        mask = forward_arguments.own_columns(attention_mask, given, x)
        lengths = (cu_seqlens, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
        documents = _documents(Described(position_ids, seq_idx, *lengths), x, mask, given)
        keep, needed = forward_arguments.kept_logits(logits_to_keep, forward_arguments.asks_loss(options))
        wanted = self._asked("output_hidden_states", output_hidden_states)
        read = self._read(given, x, input_ids, mask, documents, needed, wanted)
        logits = self.model.logits(read.h[:, keep])
        loss = self._loss(logits, documents, x, options)
        after = read.cache if self._asked("use_cache", use_cache) else None
        output = LinrecOutput(loss, logits, after, read.hidden)
        return output if self._asked("return_dict", return_dict) else output.to_tuple()

    def _asked(self, name: str, given: bool | None) -> bool:
        """A keyword; left out, it is as the configuration says."""
        return bool(getattr(self.config, name) if given is None else given)

    def _read(
        self,
        cache: LinrecCache,
        x: Tensor,
        ids: Tensor | None,
        mask: Tensor | None,
        documents: Documents | None,
        needed: int | None,
        with_hidden: bool,
    ) -> Read:
        call = self._block_call()
        if documents is None:
            return read_rows(self.model, cache, x, ids, mask, needed, call, with_hidden)
        return read_documents(self.model, cache, x, documents, call, with_hidden)

    def _loss(
        self, logits: Tensor, documents: Documents | None, x: Tensor, options: dict[str, Any]
    ) -> Tensor | None:
        if not forward_arguments.asks_loss(options):
            return None
        options["shift_labels"] = forward_arguments.targets(documents, x, options)
        loss: Tensor = self.loss_function(logits=logits, vocab_size=logits.shape[-1], **options)
        return loss

    def _embedded(self, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        if (ids is None) == (embeds is None):
            both = "neither" if ids is None else "both"
            raise ArgumentError(f"expected input_ids or inputs_embeds, got {both}")
        if ids is not None:
            return self.model.embedded(ids)
        assert embeds is not None
        width = self.model.config.d_model
        if not embeds.is_floating_point():
            raise DtypeError(f"inputs_embeds: expected floating-point numbers, got {embeds.dtype}")
        if embeds.dim() != 3 or embeds.shape[2] != width:
            raise ShapeError(f"inputs_embeds: expected [B, T, d_model = {width}], got {list(embeds.shape)}")
        return embeds


def _documents(given: Described, x: Tensor, mask: Tensor | None, cache: LinrecCache) -> Documents | None:
    if all(value is None for value in given):
        return None
    shape = (x.shape[0], x.shape[1])
    return find_documents(given, shape, mask, x.device, cache.real_counts(), cache.rows() is not None)


KEYWORDS = tuple(
    name
    for name, p in inspect.signature(LinrecForCausalLM.forward).parameters.items()
    if name != "self" and p.kind is not p.VAR_KEYWORD
)


class LinrecTokenizer(PreTrainedTokenizerFast):
    """The tokenizer of a checkpoint folder: the one whose files lie there, otherwise that of bytes."""

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> PreTrainedTokenizerFast:
        """Raises CheckpointError for a folder without tokenizer files whose model is not one of bytes."""
        folder = Path(name)
        if not folder.is_dir() or (folder / TOKENIZER_FILE).is_file():
            return PreTrainedTokenizerFast.from_pretrained(name, *args, **kwargs)
        size = read_config(folder).vocab_size
        if size != END + 1:
            raise CheckpointError(
                f"{folder}: expected {TOKENIZER_FILE}, or a model of bytes with vocab_size = {END + 1}, got {size}"
            )
        return byte_tokenizer(**kwargs)


def _unfinished(folder: Any) -> dict[str, Any] | None:
    """See :func:`linrec.models.checkpoint.unfinished_config`; what is no folder, or no checkpoint, is for others."""
    try:
        return unfinished_config(folder) if os.path.isdir(folder) else None
    except (CheckpointError, TypeError):
        return None


def _holds_weights(folder: Any) -> bool:
    names = (WEIGHTS_FILE, INDEX_FILE)
    return os.path.isdir(folder) and any(os.path.isfile(os.path.join(folder, name)) for name in names)


AutoConfig.register(MODEL_TYPE, LinrecConfig, exist_ok=True)
AutoModelForCausalLM.register(LinrecConfig, LinrecForCausalLM, exist_ok=True)
AutoTokenizer.register(LinrecConfig, LinrecTokenizer, exist_ok=True)
