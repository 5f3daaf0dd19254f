"""The weights of a checkpoint folder: their files, and whether they are those of a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linrec.errors import CheckpointError
from linrec.models.building import Model, build
from linrec.models.config import Config, shown
from linrec.reading import read_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PREFIX = "model."
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Header = dict[str, tuple[str, list[int]]]


def weight_files(folder: Path) -> list[Path]:
    """The files of weights of a folder: transformers splits large models over several, with an index."""
    index = folder / INDEX_FILE
    if os.path.isfile(folder / WEIGHTS_FILE) or not os.path.isfile(index):
        return [folder / WEIGHTS_FILE]
    values = read_json(index, CheckpointError)
    names = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(f"{index}: expected a 'weight_map' of file names")
    return [folder / name for name in sorted({os.path.basename(name) for name in names.values()})]


def merged(folder: Path, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What several files hold by name, without the prefix."""
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name.removeprefix(PREFIX) in found:
                raise CheckpointError(f"{folder}: the weights hold {name!r} twice")
            found[name.removeprefix(PREFIX)] = value
    return found


def built(kind: Callable[[Config], Model], folder: Path, config: Config, elements: int) -> Model:
    """The model of a configuration for so many weights; CheckpointError where it would take far more."""
    try:
        return build(kind, config, elements)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error


def check_weights(folder: Path, expected: Mapping[str, Tensor], got: Header) -> None:
    """Raise CheckpointError unless names, shapes and kinds of numbers are those of ``expected``."""
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            f"{folder}: the weights are not those of {CONFIG_FILE}: "
            f"{len(missing)} missing {missing[:3]}, {len(extra)} unexpected {shown(extra[:3])}"
        )
    for name, tensor in expected.items():
        dtype, shape = got[name]
        if shape != list(tensor.shape):
            raise CheckpointError(f"{folder}: {name}: expected {list(tensor.shape)}, got {shape}")
        if dtype not in FLOATS:
            raise CheckpointError(f"{folder}: {name}: expected one of {', '.join(FLOATS)}, got {dtype}")
