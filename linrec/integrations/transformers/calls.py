"""What is being called: the model, which says how its tokens lie, and in it a mixer.

Forward hooks note both, on the model and on its mixers; they are plain functions, so a model with them can be copied
and pickled. A replaced function asks for the mixer that it is called in, and outside of one it is the original.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from linrec.integrations.transformers.layout import Layout, layout_of

SAYING = ("attention_mask", "position_ids", "cu_seq_lens_q", "seq_idx")


class Modelling:
    """A call of a model: what it says of its tokens; inside another model's, also what that one says."""

    def __init__(self, said: dict[str, Any], outer: Modelling | None):
        self.outer = outer
        self.said: dict[str, Any] = said if outer is None else outer.said | said
        self._layouts: dict[tuple[int, int], Layout | None] = {}

    def layout(self, batch: int, length: int) -> Layout | None:
        """Of so many tokens; found once."""
        size = (batch, length)
        if size not in self._layouts:
            self._layouts[size] = layout_of(self.said, batch, length)
        return self._layouts[size]


class Mixing:
    """A call of a mixer: the ``module``, its arguments by name, and how the tokens lie."""

    def __init__(
        self, module: nn.Module, given: dict[str, Any], model: Modelling | None, outer: Mixing | None
    ):
        self.module, self.given, self.model, self.outer = module, given, model, outer
        self.heads = 0  # scanned so far, by mixers that scan head by head

    @property
    def layout(self) -> Layout | None:
        """Of the tokens ``hidden_states`` ``[B, T, D]``; None: all real, one document a row."""
        x = self.given.get("hidden_states")
        return self.layout_over(*x.shape[:2]) if isinstance(x, Tensor) and x.dim() == 3 else None

    def layout_over(self, batch: int, length: int) -> Layout | None:
        """The same, for mixers whose tokens have another name or come head by head."""
        if self.model is None:  # the mixer is called by itself
            return layout_of(self.given, batch, length)
        return self.model.layout(batch, length)

    @property
    def cache(self) -> Any:
        """The cache of transformers that the mixer works with, or None."""
        return self.given.get("cache", self.given.get("cache_params", self.given.get("past_key_values")))

    @property
    def cached_layer(self) -> Any:
        """The mixer's own layer of the cache, or None."""
        if self.cache is None or self.layer_number is None:
            return None
        return self.cache.layers[self.layer_number + self.given.get("cache_offset", 0)]

    @property
    def layer_number(self) -> int | None:
        """Which layer of the model the mixer is in; None where nothing says so."""
        module: Any = self.module
        return getattr(module, "layer_idx", getattr(module, "linrec_layer_idx", None))


class _Now(threading.local):
    """The calls that this thread is in."""

    def __init__(self) -> None:  # for every thread; graphs look for attributes of the instance
        self.model: Modelling | None = None
        self.mixer: Mixing | None = None


now = _Now()


def enter_model(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a model."""
    given = named(type(module), args, kwargs)
    said = {name: given[name] for name in SAYING if given.get(name) is not None}
    now.model = Modelling(said, now.model)


def leave_model(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook of a model, also when its call fails."""
    if now.model is not None:
        now.model = now.model.outer


def enter_mixer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a mixer."""
    given = named(type(module), args, kwargs) if args else kwargs
    now.mixer = Mixing(module, given, now.model, now.mixer)


def leave_mixer(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook of a mixer, also when its call fails."""
    if now.mixer is not None:
        now.mixer = now.mixer.outer


def named(kind: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a module's call by name."""
    return dict(zip(_positions[kind], args, strict=False)) | kwargs


_positions: dict[
    type[nn.Module], tuple[str, ...]
] = {}  # filled before a call: graphs cannot look at signatures


def learn(kind: type[nn.Module]) -> None:
    """Remember the order of a module's arguments."""
    if kind not in _positions:
        parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
        _positions[kind] = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def dispatched(original: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """The original, but inside a mixer that is accelerated ``function``."""

    @wraps(original)
    def either(*args: Any, **kwargs: Any) -> Any:
        mixer = now.mixer
        if mixer is not None:
            result = function(mixer, *args, **kwargs)
            if result is not NotImplemented:
                return result
        return original(*args, **kwargs)

    either.linrec_original = original  # type: ignore[attr-defined]
    return either


class Carried:
    """A checkpointing function that takes the call of the model along: layers are recomputed outside of it."""

    def __init__(self, checkpoint: Callable[..., Any]):
        self.checkpoint = checkpoint

    def __call__(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``run`` checkpointed, as in this call of the model when it is run again."""
        model = now.model

        def again(*args: Any, **kwargs: Any) -> Any:
            before, now.model = now.model, model
            try:
                return run(*args, **kwargs)
            finally:
                now.model = before

        return self.checkpoint(run if torch.compiler.is_compiling() else again, *args, **kwargs)
