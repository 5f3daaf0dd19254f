"""``generate`` of transformers over recurrent states: what differs from models with keys and values.

:class:`CachedGeneration` stands before transformers' classes among the bases of a model.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from linrec.errors import ArgumentError, ConfigError, ShapeError
from linrec.models.documents import Described, find_documents
from linrec.models.read_cache import LinrecCache
from linrec.models.resuming import resumed

CACHE_NAMES = ("cache", "state", "past_key_values", "cache_params")


def one_cache(given: dict[str, Any]) -> tuple[LinrecCache | None, str]:
    """The cache and its name, which are taken out of ``given``; ArgumentError for more than one."""
    values = {name: given.pop(name, None) for name in CACHE_NAMES}
    found = {name: value for name, value in values.items() if value is not None}
    if len(found) > 1:
        raise ArgumentError(f"expected one cache, got {' and '.join(found)}")
    for name, value in found.items():
        return LinrecCache.of(value, name), name
    return None, ""


class CachedGeneration:
    """``generate(input_ids, cache=…)`` with the whole sequence, or with new ids alone (see ``resumed``).

    Caches that are given stay as they are. The one that is returned belongs to the returned sequences, row by row.
    After a search with beams that ended early their states are gone: then it holds the prompt, and what they wrote is
    read with the next call.
    """

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """See ``transformers.GenerationMixin.generate``; ``state``, ``past_key_values`` and ``cache_params`` are
        other names of ``cache``."""
        config = kwargs.get("generation_config", args[1] if len(args) > 1 else None)
        drafting = bool(getattr(config, "is_assistant", False))
        cache, name = one_cache(kwargs)
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        if cache is not None:
            # A drafting model's own cache goes to and fro, with what it keeps for going back.
            cache = cache if drafting else cache.plain()
            mask = kwargs.get("attention_mask")
            cache.by_count, cache.masked = name == "state", None if mask is None else mask.shape[1]
            kwargs["cache"] = cache
        elif ids is not None and kwargs.get("inputs_embeds") is None:
            _check_mask(kwargs, ids, drafting)
        _check_positions(kwargs)
        if kwargs.get("cache_implementation") is not None:
            _refuse_implementation(kwargs["cache_implementation"])
        result = super().generate(*args, **kwargs)  # type: ignore[misc]
        if not drafting and not isinstance(result, Tensor) and isinstance(result.get("cache"), LinrecCache):
            result.cache = self._cache_of(result)
        return result

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        # Here the mask is final and the rows are still those that were given.
        cache = model_kwargs.pop("cache", None) or LinrecCache()
        model_kwargs.pop(
            "position_ids", None
        )  # transformers' own, made from the mask; the caller's were checked
        embeds = model_kwargs.get("inputs_embeds")
        if input_ids is not None:
            mask = model_kwargs.get("attention_mask")
            if embeds is None:
                cache = resumed(cache, input_ids, mask)
                if mask is not None:  # what was read keeps its own
                    model_kwargs["attention_mask"] = mask[:, mask.shape[1] - input_ids.shape[1] :]
            cache.expanded = expand_size
            model_kwargs["cache"] = cache.repeated(expand_size)
        expanded: tuple[Tensor, dict[str, Any]] = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return expanded

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation is not None:
            _refuse_implementation(generation_config.cache_implementation)
        if generation_config.assistant_early_exit is not None:
            raise ConfigError(
                "assistant_early_exit: expected None: the model has one head, after its last layer"
            )
        cache: LinrecCache = model_kwargs["cache"]
        if generation_config.use_cache is False:
            if cache.count:
                raise ArgumentError("use_cache=False contradicts the cache that is given")
            del model_kwargs["cache"]
            return
        # Reading in pieces is the cache's own matter: transformers does not know which ids were read before.
        cache.piece, generation_config.prefill_chunk_size = generation_config.prefill_chunk_size, None
        if generation_config.is_assistant:
            cache.activate_past_recording()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: LinrecCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The ids of input_ids ``[B, T]`` that the cache has not read, and what belongs to them; inputs_embeds
        ``[B, T, d_model]`` stand before the first ids."""
        for name in ("tokenizer", "assistant_tokenizer"):  # of stop strings; transformers hands them round
            kwargs.pop(name, None)
        decoding = next_sequence_length is not None
        if cache is not None:
            next_sequence_length = input_ids.shape[1] - cache.get_seq_length() + cache.skipped
            if inputs_embeds is not None and is_first_iteration:
                cache.skipped = inputs_embeds.shape[1] - input_ids.shape[1]
                next_sequence_length = inputs_embeds.shape[1] - cache.get_seq_length()
            if next_sequence_length < 1:
                raise ArgumentError(
                    f"the cache has read {cache.get_seq_length()} columns: expected more than these, got nothing new"
                )
            if attention_mask is not None:
                attention_mask = attention_mask[:, attention_mask.shape[1] - next_sequence_length :]
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length=next_sequence_length,
            cache=cache,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if decoding and next_sequence_length == 1:
            inputs.pop("attention_mask", None)  # the new token of every row is real; padding is behind us
        return inputs

    def _reorder_cache(self, cache: LinrecCache, beam_idx: Tensor) -> LinrecCache:
        chosen = cache.select_rows(beam_idx)
        if chosen.prompt is None:  # all beams of a row are still the same
            chosen.prompt = cache.select_rows(torch.arange(0, len(beam_idx), cache.expanded))
        return chosen

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused with ConfigError: continuous batching pages keys and values."""
        _refuse_implementation("paged")

    init_continuous_batching = generate_batch

    def _cache_of(self, result: Any) -> LinrecCache:
        """The cache of the returned sequences, with nothing left to read again."""
        cache: LinrecCache = result.cache
        if cache.prompt is not None:
            each = len(result.sequences) // (cache.prompt.rows() or 1)
            rows = _beams_of(cache, result.sequences, each)
            cache = cache.prompt.repeated(each) if rows is None else cache.select_rows(rows)
        cache = cache.plain()
        state, again, mask = cache.entry()
        if again is None or again.shape[1] == 0:
            return cache
        assert cache.tokens is not None
        before = slice(0, cache.at)
        read = LinrecCache(
            state,
            cache.tokens[:, before] if cache.at else None,
            None if cache.real is None else cache.real[:, before],
        )
        with torch.no_grad():
            settled: LinrecCache = self(again, attention_mask=mask, cache=read, logits_to_keep=1).cache  # type: ignore[operator]
        return settled


def _beams_of(cache: LinrecCache, sequences: Tensor, each: int) -> Tensor | None:
    """Of each returned sequence the row of a last beam that has read its beginning; None where one has none.

    ``each`` sequences are returned for one that was given, of as many beams as ``cache.expanded``.
    """
    assert cache.tokens is not None
    read = cache.tokens[:, cache.skipped :].unflatten(0, (-1, cache.expanded)).repeat_interleave(each, 0)
    columns = read.shape[2]
    if sequences.shape[1] < columns:
        return None
    same = (sequences[:, None, :columns] == read).all(2)
    if not bool(same.any(1).all()):
        return None
    given = torch.arange(len(sequences), device=same.device) // each
    return given * cache.expanded + same.int().argmax(1)


def _check_mask(kwargs: dict[str, Any], ids: Tensor, drafting: bool) -> None:
    """Without a cache the mask has the shape of the ids; ShapeError otherwise.

    A drafting model gets that of the other model, which may have a cache that covers more.
    """
    mask = kwargs.get("attention_mask")
    if mask is None or mask.shape == ids.shape:
        return
    if not drafting or mask.shape[1] < ids.shape[1]:
        raise ShapeError(f"attention_mask: expected {list(ids.shape)}, as input_ids, got {list(mask.shape)}")
    kwargs["attention_mask"] = mask[:, mask.shape[1] - ids.shape[1] :]


def _check_positions(kwargs: dict[str, Any]) -> None:
    """Take out position_ids, if they say nothing but what the mask says; ArgumentError otherwise."""
    positions = kwargs.pop("position_ids", None)
    if positions is None:
        return
    mask = kwargs.get("attention_mask")
    shape = tuple(positions.shape) if mask is None else tuple(mask.shape)
    if find_documents(Described(position_ids=positions), shape, mask, positions.device) is not None:
        raise ArgumentError(
            "generate: position_ids restart inside a row, but generate continues one document a row"
        )


def _refuse_implementation(name: Any) -> NoReturn:
    raise ConfigError(
        f"cache_implementation: expected None, got {name!r}: a recurrent state is no store of keys and values"
    )
