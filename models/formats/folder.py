"""A folder in a format of another project: its model read into ours, and one of ours written so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linrec.errors import CheckpointError
from linrec.files import pickle_writer, tensor_writer, text_writer, write_together
from linrec.models.building import Model
from linrec.models.checkpoint import Saved
from linrec.models.config import Config
from linrec.models.formats.format import Format
from linrec.models.formats.options import marked
from linrec.models.formats.weights import into_ours, into_theirs
from linrec.models.saved_weights import (
    CONFIG_FILE,
    FLOATS,
    INDEX_FILE,
    WEIGHTS_FILE,
    built,
    check_weights,
    weight_files,
)
from linrec.reading import open_tensors

PICKLED = "pytorch_model.bin"
HEAD = "lm_head.weight"
DTYPES = {dtype: name for name, dtype in FLOATS.items()}


def load_from(
    kind: Callable[[Config], Model], form: Format, folder: Path, values: Mapping[str, Any]
) -> Model:
    """What ``kind`` makes of the options in ``values``, with the folder's weights, in their own precision.

    Raises CheckpointError for an option that cannot be expressed, and for weights that are not those of the options.
    """
    config = form.read(values, str(folder / CONFIG_FILE))
    with _tensors(folder) as theirs:
        if (config.num_layers or 0) > len(theirs):  # before every weight of so many layers is listed
            raise CheckpointError(
                f"{folder}: expected {config.num_layers} layers, found {len(theirs)} weights"
            )
        if config.tie_embeddings:
            theirs.pop(HEAD, None)  # some write the embedding twice
        ours = into_ours(form.weights(config), theirs, str(folder))
        model = built(kind, folder, config, sum(tensor.numel() for tensor in ours.values()))
        kinds = {n: (DTYPES.get(t.dtype, str(t.dtype)), list(t.shape)) for n, t in ours.items()}
        check_weights(folder, model.state_dict(), kinds)
        model.load_state_dict(ours, assign=True)
    return model


def save_as(
    form: Format,
    model: Saved,
    folder: Path,
    known: Mapping[str, Any] | None = None,
    files: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write the model as ``form`` has it, and ``files`` beside it; ``known`` are options that it was once read from.

    Raises CheckpointError for a model that the format cannot express.
    """
    text = json.dumps(_values(form, model, known or {}), indent=2) + "\n"
    weights = into_theirs(form.weights(model.config), model.state_dict(), form.name)
    writers = {name: text_writer(content) for name, content in (files or {}).items()}
    if form.architecture is None:
        if model.config.tie_embeddings:
            weights[HEAD] = next(t for n, t in weights.items() if n.startswith("backbone.embedding"))
        writers[PICKLED] = pickle_writer(weights)
    else:
        writers[WEIGHTS_FILE] = tensor_writer(weights, {"format": "pt"})
    write_together(folder, {**writers, CONFIG_FILE: text_writer(text)})


def _values(form: Format, model: Saved, known: Mapping[str, Any]) -> dict[str, Any]:
    """What ``config.json`` says: what the model was read from, as long as it says the same."""
    if form.recognises(known) and form.read(known, "the options that it was read from") == model.config:
        return dict(known)
    named = {} if form.architecture is None else {"architectures": [form.architecture]}
    dtype = {} if form.architecture is None else {"dtype": str(model.dtype).removeprefix("torch.")}
    return {**named, **dtype, **marked(form.options(model.config))}


@contextlib.contextmanager
def _tensors(folder: Path) -> Iterator[dict[str, Tensor]]:
    """Every tensor of the folder's files by name."""
    if (
        not any((folder / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE))
        and (folder / PICKLED).is_file()
    ):
        yield _pickled(folder / PICKLED)
        return
    found: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for path in weight_files(folder):
            found |= stack.enter_context(open_tensors(path, CheckpointError)).tensors()
        yield found


def _pickled(path: Path) -> dict[str, Tensor]:
    """A file of torch's; nothing but tensors is read from it."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # As of a damaged safetensors file, what torch raises is written down nowhere.
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: not a file of weights ({type(error).__name__}: {said})") from error
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise CheckpointError(f"{path}: expected tensors by name")
    return values
