"""The file of a streaming session: one safetensors file.

Tensors: ``state.<path>`` for each tensor of the state, ``logits`` (absent before the first token), ``rng``.
Metadata: format, version, the model's fingerprint, the tree of the state as JSON, and a sha256 over all of
it, because safetensors itself notices a short file but not a changed value.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linrec.errors import SessionError
from linrec.files import fingerprint, write_tensors
from linrec.reading import open_tensors, parse_json
from linrec.state import State, map_tensors, named_tensors

FORMAT = "linrec-session"
VERSION = "1"


class Saved(NamedTuple):
    """What a session file holds."""

    state: State
    logits: Tensor | None
    rng: Tensor


def write_session(
    path: str | os.PathLike[str], fingerprint: str, state: State, logits: Tensor | None, rng: Tensor
) -> None:
    """Write atomically; ``logits [vocab_size]``, ``rng [n]`` the state of a torch.Generator, uint8."""
    # Views into larger storage are copied: a file must hold the state alone.
    tensors = {f"state.{name}": t.detach().cpu().clone() for name, t in named_tensors(state)}
    tensors["rng"] = rng
    if logits is not None:
        tensors["logits"] = logits.cpu()
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": fingerprint,
        "tree": json.dumps(_describe(state)),
    }
    metadata["sha256"] = _digest(tensors, metadata)
    write_tensors(path, tensors, metadata)


def read_session(
    path: str | os.PathLike[str], fingerprint: str, template: State, device: torch.device
) -> Saved:
    """The session of a file; ``template`` is any state of the model and gives the types of the tree.

    Raises SessionError for a file that is missing, truncated, damaged, of another version or model, or that holds
    anything but a state of this model.
    """
    with open_tensors(path, SessionError) as file:
        metadata = file.metadata
        if metadata.get("format") != FORMAT:
            came = repr(metadata.get("format"))[:80]
            raise SessionError(f"{path}: expected a session file ({FORMAT}), got format {came}")
        if metadata.get("version") != VERSION:
            came = repr(metadata.get("version"))[:80]
            raise SessionError(f"{path}: expected session version {VERSION}, got {came}")
        tensors = file.tensors()
    if metadata.get("sha256") != _digest(tensors, metadata):
        raise SessionError(f"{path}: the content does not match its checksum; the file is damaged")
    if metadata.get("model") != fingerprint:
        got = str(metadata.get("model"))[:12]
        raise SessionError(
            f"{path}: the session belongs to another model: "
            f"expected fingerprint {fingerprint[:12]}…, got {got}…"
        )
    tree = parse_json(metadata.get("tree", ""), f"{path}: the tree of the state", SessionError)
    try:
        state = _build(tree, template, tensors, "state")
        _check_rest(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise SessionError(f"{path}: the state is not one of this model ({error})") from error
    state = map_tensors(lambda t: t.to(device), state)
    logits = tensors.get("logits")
    return Saved(state, None if logits is None else logits.to(device), tensors["rng"])


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    described = {key: value for key, value in metadata.items() if key != "sha256"}
    return fingerprint(described, tensors)


def _describe(state: State) -> Any:
    """A tuple as {"type", "children"}, a tensor as "tensor", a number or None as {"value"}."""
    if isinstance(state, Tensor):
        return "tensor"
    if isinstance(state, tuple):
        return {"type": type(state).__name__, "children": [_describe(child) for child in state]}
    return {"value": state}


def _build(tree: Any, template: State, tensors: dict[str, Tensor], path: str) -> State:
    """Types come from the template alone: a file names classes but can never choose one to import."""
    if isinstance(template, Tensor):
        if tree != "tensor" or path not in tensors:
            raise ValueError(f"{path}: expected a tensor")
        return _checked(tensors.pop(path), template, path)
    if not isinstance(template, tuple):
        if tree != {"value": template}:
            raise ValueError(f"{path}: expected {template!r}")
        return template
    if not isinstance(tree, dict) or tree.get("type") != type(template).__name__:
        raise ValueError(f"{path}: expected {type(template).__name__}")
    names, children = getattr(template, "_fields", range(len(template))), tree.get("children")
    if not isinstance(children, list) or len(children) != len(template):
        raise ValueError(f"{path}: expected {len(template)} parts")
    parts = [
        _build(child, below, tensors, f"{path}.{name}")
        for name, child, below in zip(names, children, template, strict=True)
    ]
    return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)


def _checked(tensor: Tensor, template: Tensor, path: str) -> Tensor:
    """The template has seen no token, so a cache of tokens has none in its second dimension."""
    shape, expected = list(tensor.shape), list(template.shape)
    if len(expected) > 1 and expected[1] == 0 and len(shape) == len(expected):
        expected[1] = shape[1]
    if shape != expected or tensor.dtype != template.dtype:
        raise ValueError(f"{path}: expected {template.dtype} {expected}, got {tensor.dtype} {shape}")
    return tensor


def _check_rest(tensors: dict[str, Tensor]) -> None:
    """What remains beside the state: the generator's state and, once a token was fed, one row of logits."""
    if unknown := sorted(tensors.keys() - {"rng", "logits"}):
        raise ValueError(f"unexpected tensors {unknown[:3]}")
    torch.Generator().set_state(tensors["rng"])
    logits = tensors.get("logits")
    if logits is not None and not (logits.dim() == 1 and logits.numel() and logits.is_floating_point()):
        raise ValueError(f"logits: expected a row of numbers, got {logits.dtype} {list(logits.shape)}")
