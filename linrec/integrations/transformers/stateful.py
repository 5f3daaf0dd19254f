"""A model of transformers whose state is a value: what reads text with forked states (lm-eval, sessions) can use it.

A cache of transformers is written over by every call. Here a call makes a cache of the state that it is given, and what
the cache holds afterwards is the next state, so a state that is held stays as it is. Rows may have read different
numbers of tokens: of softmax layers, whose keys lie side by side, each row's are kept from the first on, and moved up
to the newest for a call, where a window reaches as far in every row as it does for that row alone.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from linrec.errors import CheckpointError
from linrec.files import fingerprint
from linrec.integrations.transformers.handle import accelerate
from linrec.state import map_tensors

CACHES = ("cache", "past_key_values", "cache_params")  # what models call theirs, the newest name first
KEPT = {
    *("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"),
    *("LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer"),
}


class LayerTensors(NamedTuple):
    """Of one layer: keys and values ``[B, T, H, D]``, and what its recurrences and convolutions hold ``[B, ...]``."""

    keys: Tensor | None
    values: Tensor | None
    convolutions: tuple[Tensor | None, ...]
    recurrences: tuple[Tensor | None, ...]


class CachedState(NamedTuple):
    """seen ``[B]``: tokens that each row has read."""

    seen: Tensor
    layers: tuple[LayerTensors, ...]


class StatefulOutput(NamedTuple):
    """``logits [B, T, vocab_size]`` and the state after the last token."""

    logits: Tensor
    state: CachedState


class StatefulModel(nn.Module):
    """A causal language model of transformers with the calls of :class:`linrec.models.LanguageModel` that streaming and
    evaluation make. The model runs through linrec from then on (:func:`accelerate`).

    Raises CheckpointError for one whose cache holds what cannot be forked.
    """

    def __init__(self, model: Any):
        super().__init__()
        accelerate(model)
        self.model = model.eval()
        self.config = model.config.get_text_config()
        names = inspect.signature(type(model.base_model).forward).parameters
        taken = [name for name in CACHES if name in names]
        if not taken:
            raise CheckpointError(f"{type(model).__name__}: expected a model that takes one of {CACHES}")
        self._cache_name, self._positions = taken[0], "position_ids" in names
        self._shell, self._output = self._read_one()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def _read_one(self) -> tuple[Any, Any]:
        """A cache after one token, for its parts and their shapes, and the output of the model inside."""
        given: dict[str, Any] = {self._cache_name: None, "use_cache": True}
        output = self.model.base_model(
            input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), **given
        )
        cache = next((found for name in CACHES if (found := getattr(output, name, None)) is not None), None)
        kinds = {type(layer).__name__ for layer in getattr(cache, "layers", ())} or {type(cache).__name__}
        if not kinds <= KEPT:
            raise CheckpointError(
                f"{type(self.model).__name__}: its state lies in {', '.join(sorted(kinds - KEPT))}, which cannot be "
                f"forked; known: {', '.join(sorted(KEPT))}"
            )
        return cache, output

    def init_state(self, batch_size: int = 1) -> CachedState:
        """The empty state for ``batch_size`` rows."""
        layers = tuple(_tensors(layer, None, 0) for layer in self._shell.layers)
        one = CachedState(torch.zeros(1, dtype=torch.long, device=self.device), layers)
        return map_tensors(lambda x: x.new_zeros(batch_size, *x.shape[1:]), one)

    def hidden(
        self,
        tokens: Tensor,
        state: CachedState | None = None,
        cu_seqlens: None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, CachedState]:
        """What the head reads of tokens ``[B, T]``, ``[B, T, d_model]``, and the next state; attention_mask ``[B, T]``,
        1 = real token."""
        state = self.init_state(tokens.shape[0]) if state is None else state
        before = int(state.seen.max()) if len(state.seen) else 0
        new = torch.ones_like(tokens) if attention_mask is None else attention_mask.to(tokens.dtype)
        place = torch.arange(before, device=tokens.device)
        real = torch.cat([(place >= before - state.seen[:, None]).to(tokens.dtype), new], dim=1)
        given: dict[str, Any] = {self._cache_name: self._cache(state, before), "use_cache": True}
        if self._positions:
            given["position_ids"] = (state.seen[:, None] + new.cumsum(1) - 1).clamp(min=0)
        if not bool(real.all()):
            given["attention_mask"] = real
        output = self.model.base_model(input_ids=tokens, **given)
        count = state.seen + new.sum(1)
        layers = given[self._cache_name].layers
        after = tuple(_tensors(layer, real, int(count.max())) for layer in layers)
        return output.last_hidden_state, CachedState(count, after)

    def logits(self, h: Tensor) -> Tensor:
        """``[..., d_model] -> [..., vocab_size]``: the model's own way from there, multipliers and soft caps
        included."""
        rows = h.reshape(1, -1, h.shape[-1])
        inside = self.model.base_model
        given = {
            "input_ids": torch.zeros(rows.shape[:2], dtype=torch.long, device=h.device),
            "use_cache": False,
        }
        with _Instead(inside, replace(self._output, last_hidden_state=rows)):
            logits: Tensor = self.model(**given).logits
        return logits.view(*h.shape[:-1], -1)

    def forward(self, tokens: Tensor, state: CachedState | None = None) -> StatefulOutput:
        """Logits of every position, tokens ``[B, T]``."""
        h, state = self.hidden(tokens, state)
        return StatefulOutput(self.logits(h), state)

    def prefill(self, tokens: Tensor, state: CachedState | None = None) -> StatefulOutput:
        """Read a prompt, tokens ``[B, T]``; logits ``[B, 1, vocab_size]`` of its last token."""
        h, state = self.hidden(tokens, state)
        return StatefulOutput(self.logits(h[:, -1:]), state)

    def step(self, tokens: Tensor, state: CachedState) -> StatefulOutput:
        """One token a row, tokens ``[B, 1]``."""
        return self.forward(tokens, state)

    def fingerprint(self) -> str:
        """sha256 over the configuration and every weight."""
        return fingerprint(self.config.to_dict(), self.model.state_dict())

    def _cache(self, state: CachedState, before: int) -> Any:
        cache = copy.copy(self._shell)
        cache.layers = [
            _filled(copy.copy(layer), tensors, state.seen, before)
            for layer, tensors in zip(self._shell.layers, state.layers, strict=True)
        ]
        return cache


class _Instead:
    """Within the block, calling the module gives this."""

    def __init__(self, module: nn.Module, output: Any):
        self.module, self.output = module, output

    def __enter__(self) -> None:
        self.module.forward = lambda *_, **__: self.output

    def __exit__(self, *_: object) -> None:
        del self.module.forward


def _filled(layer: Any, tensors: LayerTensors, count: Tensor, before: int) -> Any:
    """A layer of a cache that holds these tensors, in memory of its own where the next call writes."""
    if tensors.keys is not None and tensors.values is not None:
        # They are wider than that once longer rows stood beside these.
        pair = tensors.keys[:, :before], tensors.values[:, :before]
        kept = count.clamp(max=pair[0].shape[1])
        layer.keys, layer.values = (_to_the_end(x, kept).transpose(1, 2) for x in pair)
        if layer.is_sliding:
            layer.cumulative_length, layer.record_past = before, True  # cut below, by rows
    if hasattr(layer, "conv_states"):
        layer.conv_states = dict(enumerate(map_tensors(torch.clone, tensors.convolutions)))
        layer.recurrent_states = dict(enumerate(map_tensors(torch.clone, tensors.recurrences)))
        layer.has_previous_state = dict.fromkeys(layer.has_previous_state, True)
    return layer


def _tensors(layer: Any, real: Tensor | None, longest: int) -> LayerTensors:
    """What a layer holds; keys of each row's real tokens, from the first column on, ``longest`` columns at most."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    conv, recurrent = (getattr(layer, name, {}) for name in ("conv_states", "recurrent_states"))
    states = tuple(conv.values()), tuple(recurrent.values())
    if keys is None or values is None:
        return LayerTensors(None, None, *states)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    width = min(longest, layer.sliding_window - 1) if layer.is_sliding else longest
    if real is not None and not bool(real.all()):
        here = real[:, real.shape[1] - keys.shape[1] :].bool()
        keys, values = (_real_to_the_end(x, here) for x in (keys, values))
        kept = here.sum(1).clamp(max=width)
        keys, values = (_to_the_start(x[:, x.shape[1] - width :], kept) for x in (keys, values))
    return LayerTensors(keys[:, keys.shape[1] - width :], values[:, values.shape[1] - width :], *states)


def _real_to_the_end(x: Tensor, real: Tensor) -> Tensor:
    """The columns of x ``[B, T, ...]`` in order, those that are ``real [B, T]`` last."""
    return _picked(x, real.int().argsort(dim=1, stable=True))


def _to_the_end(x: Tensor, count: Tensor) -> Tensor:
    """The first ``count [B]`` columns of each row of x ``[B, T, ...]`` as its last, after zeros."""
    width = x.shape[1]
    if bool((count == width).all()):
        return x
    place = torch.arange(width, device=x.device) - (width - count[:, None])
    return _picked(x, place.clamp(min=0)).masked_fill(_wide(place < 0, x), 0)


def _to_the_start(x: Tensor, count: Tensor) -> Tensor:
    """The inverse: the last ``count [B]`` columns as the first, zeros after them."""
    width = x.shape[1]
    place = torch.arange(width, device=x.device) + (width - count[:, None])
    return _picked(x, place.clamp(max=width - 1)).masked_fill(_wide(place >= width, x), 0)


def _picked(x: Tensor, columns: Tensor) -> Tensor:
    return x.gather(1, _wide(columns, x).expand(*columns.shape, *x.shape[2:]))


def _wide(x: Tensor, like: Tensor) -> Tensor:
    return x.view(*x.shape, *[1] * (like.dim() - 2))
