"""The file of a streaming session: one safetensors file.

Tensors: ``state.<path>`` for each tensor of the state, ``logits`` (absent before the first token), ``rng``.
Metadata: format, version, the model's fingerprint, the tree of the state as JSON, and a sha256 over all of
it, because safetensors itself notices a short file but not a changed value.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from linrec.errors import CheckpointError
from linrec.files import tensor_chunks, write_tensors
from linrec.state import State, named_tensors

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
    """Write atomically; ``rng`` is the state of a torch.Generator, uint8."""
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

    Raises CheckpointError for a file that is missing, truncated, damaged, of another version or model.
    """
    tensors, metadata = _read(Path(path))
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: expected a session file ({FORMAT}), got format {metadata.get('format')!r}"
        )
    if metadata.get("version") != VERSION:
        raise CheckpointError(f"{path}: expected session version {VERSION}, got {metadata.get('version')!r}")
    if metadata.get("sha256") != _digest(tensors, metadata):
        raise CheckpointError(f"{path}: the content does not match its checksum; the file is damaged")
    if metadata.get("model") != fingerprint:
        got = str(metadata.get("model"))[:12]
        raise CheckpointError(
            f"{path}: the session belongs to another model: "
            f"expected fingerprint {fingerprint[:12]}…, got {got}…"
        )
    tensors = {name: t if name == "rng" else t.to(device) for name, t in tensors.items()}
    try:
        state = _build(json.loads(metadata["tree"]), template, tensors, "state")
        return Saved(state, tensors.get("logits"), tensors["rng"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the state is not one of this model ({error})") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a session file, found no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: truncated or damaged, or not a safetensors file ({error})") from error


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    described = {key: value for key, value in metadata.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for part in tensor_chunks(tensors):
        digest.update(part)
    return digest.hexdigest()


def _describe(state: State) -> Any:
    """A tuple as {"type", "children"}, a tensor as "tensor", a number or None as {"value"}."""
    if isinstance(state, Tensor):
        return "tensor"
    if isinstance(state, tuple):
        return {"type": type(state).__name__, "children": [_describe(child) for child in state]}
    return {"value": state}


def _build(tree: Any, template: State, tensors: Mapping[str, Tensor], path: str) -> State:
    """Types come from the template alone: a file names classes but can never choose one to import."""
    if tree == "tensor":
        return tensors[path]
    if "value" in tree:
        return tree["value"]
    if not isinstance(template, tuple) or type(template).__name__ != tree["type"]:
        raise ValueError(f"{path}: expected {type(template).__name__}, got {tree['type']}")
    children = tree["children"]
    names = getattr(template, "_fields", range(len(template)))
    parts = [
        _build(child, below, tensors, f"{path}.{name}")
        for name, child, below in zip(names, children, template, strict=True)
    ]
    return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)
