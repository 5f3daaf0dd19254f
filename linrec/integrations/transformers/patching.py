"""Putting replacements into a built model, and taking them out again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from linrec.integrations.transformers.calls import (
    Carried,
    dispatched,
    enter_mixer,
    enter_model,
    learn,
    leave_mixer,
    leave_model,
)
from linrec.integrations.transformers.replacement import Place, places

_models: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[nn.Module]]] = weakref.WeakKeyDictionary()


def accelerate_modules(model: nn.Module) -> None:
    """Hook the model and its mixers, and put the replacements of the mixers' functions in their places."""
    mixers = {name: module for name, module in model.named_modules() if replaced(type(module))}
    for path, mixer in mixers.items():
        _number(mixer, path)
        _hook(mixer, enter_mixer, leave_mixer)
        for place in replaced(type(mixer)):
            install(place)
    for part in models_in(model) if mixers else ():
        if any(replaced(type(module)) for module in part.modules()):
            _hook(part, enter_known_model, leave_model)
            _models[part] = [weakref.ref(m) for m in part.modules() if hasattr(m, "gradient_checkpointing")]


def restore_modules(model: nn.Module) -> None:
    """Take away what :func:`accelerate_modules` has done; functions of modelling files with the last model."""
    for module in model.modules():
        _unhook(module)
        module.__dict__.pop("linrec_layer_idx", None)
        _models.pop(module, None)
        carried = module.__dict__.get("_gradient_checkpointing_func")
        if isinstance(carried, Carried):
            module._gradient_checkpointing_func = carried.checkpoint  # type: ignore[assignment]
    needed = {
        (place.holder, place.name)
        for other in _models
        for module in other.modules()
        if is_accelerated(module)
        for place in replaced(type(module))
    }
    for place in list(_installed):
        if place not in needed:
            holder, name = place
            setattr(holder, name, _installed.pop(place))


def replaced(kind: type[nn.Module]) -> tuple[Place, ...]:
    """What linrec replaces in modules of this class: all that it could, or nothing if it does not know part of it."""
    found = places(kind)
    return () if any(place.problem for place in found) else found


def is_accelerated(module: nn.Module) -> bool:
    """Whether a mixer is hooked."""
    return enter_mixer in module._forward_pre_hooks.values()


def models_in(model: nn.Module) -> Iterator[nn.Module]:
    """The models of transformers in a module, itself included."""
    from transformers import PreTrainedModel

    return (module for module in model.modules() if isinstance(module, PreTrainedModel))


_installed: dict[tuple[Any, str], Any] = {}


def install(place: Place) -> None:
    """Put a replacement in its place, once."""
    key = (place.holder, place.name)
    if key not in _installed:
        original = vars(place.holder)[place.name]
        _installed[key] = original
        setattr(place.holder, place.name, dispatched(original, place.replacement.function))


def enter_known_model(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a model. A copy of a model, or one from a file, has its hooks but is not known yet."""
    if not torch.compiler.is_compiling():
        if module not in _models:
            accelerate_modules(module)
        if module.training and torch.is_grad_enabled():
            _carry(module)
    enter_model(module, args, kwargs)


def _carry(model: nn.Module) -> None:
    """Make layers that are checkpointed take the model's call along; checkpointing may be switched on at any time."""
    for layer in (reference() for reference in _models[model]):
        checkpoint = None if layer is None else getattr(layer, "_gradient_checkpointing_func", None)
        if checkpoint is not None and not isinstance(checkpoint, Carried):
            layer._gradient_checkpointing_func = Carried(checkpoint)  # type: ignore[union-attr]


def _number(mixer: nn.Module, path: str) -> None:
    """Tell a mixer that does not know it which layer of the model it is in: the first number of its name there."""
    number = next((int(part) for part in path.split(".") if part.isdigit()), None)
    if number is not None and not hasattr(mixer, "layer_idx"):
        mixer.linrec_layer_idx = number  # type: ignore[assignment]


def _hook(module: nn.Module, enter: Any, leave: Any) -> None:
    learn(type(module))
    if enter not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, always_call=True)


def _unhook(module: nn.Module) -> None:
    for hooks, ours in (
        (module._forward_pre_hooks, (enter_mixer, enter_known_model)),
        (module._forward_hooks, (leave_mixer, leave_model)),
    ):
        for number in [number for number, hook in hooks.items() if hook in ours]:
            del hooks[number]
            module._forward_pre_hooks_with_kwargs.pop(number, None)
            module._forward_hooks_always_called.pop(number, None)
