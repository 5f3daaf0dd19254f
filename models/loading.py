"""Any checkpoint folder: ours, or one of another project in a format that we read; and from one to the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from linrec.errors import CheckpointError
from linrec.models.building import Model
from linrec.models.checkpoint import (
    MODEL_TYPE,
    Saved,
    config_values,
    load_checkpoint,
    read_config,
    save_checkpoint,
)
from linrec.models.config import Config, shown
from linrec.models.formats.folder import PICKLED, load_from, save_as
from linrec.models.formats.registry import all_formats, format_of, named_format
from linrec.models.saved_weights import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from linrec.reading import read_bytes

READ_FROM = "linrec_read_from"  # in our config.json: the options of the project that a model comes from


def load_model(
    kind: Callable[[Config], Model],
    folder: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """What ``kind`` makes of a folder's configuration, with its weights; in evaluation mode, in the saved precision.

    Raises CheckpointError where a file is missing, damaged or of no format that is known, where an option cannot be
    expressed, and where weights and configuration do not fit each other.
    """
    folder = Path(folder)
    values = config_values(folder)
    if values.get("model_type") == MODEL_TYPE:
        return load_checkpoint(kind, folder, device, dtype)
    form = format_of(values)
    if form is None:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: no format is known with model_type {shown(values.get('model_type'))}; "
            f"known: {MODEL_TYPE}, {', '.join(all_formats())}"
        )
    return load_from(kind, form, folder, values).to(device=device, dtype=dtype).eval()


def model_config(folder: str | os.PathLike[str]) -> Config:
    """The configuration of the model in any such folder; raises as :func:`load_model`."""
    values = config_values(folder)
    form = None if values.get("model_type") == MODEL_TYPE else format_of(values)
    return read_config(folder) if form is None else form.read(values, str(Path(folder) / CONFIG_FILE))


def convert(
    kind: Callable[[Config], Any],
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str = MODEL_TYPE,
) -> None:
    """Write the model of one folder to another in the format ``to``; what else the folder holds (a tokenizer) as it is.

    Weights only move: there and back gives the same bits, and a configuration that says the same is written back word
    for word. Raises CheckpointError as :func:`load_model` does, and for a model that ``to`` cannot express;
    UnknownNameError for a format that there is not.
    """
    form = None if to == MODEL_TYPE else named_format(to)
    source, target = Path(source), Path(target)
    if target.exists() and source.resolve() == target.resolve():
        raise CheckpointError(f"{target}: expected another folder than the one that is read")
    model: Saved = load_model(kind, source)
    values = config_values(source)
    known = values.get(READ_FROM, {}) if values.get("model_type") == MODEL_TYPE else values
    files = _others(source)
    if form is None:
        save_checkpoint(model, target, files, {READ_FROM: known} if known else None)
    else:
        save_as(form, model, target, known, files)


def _others(folder: Path) -> Mapping[str, bytes]:
    """The small files beside configuration and weights: a tokenizer's, generation settings, a licence."""
    ours = (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, PICKLED)
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    kept = (
        p for p in files if p.name not in ours and p.suffix not in (".safetensors", ".bin", ".pt", ".pth")
    )
    return {path.name: read_bytes(path, CheckpointError) for path in kept}
