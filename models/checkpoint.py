"""Checkpoints: a folder with ``config.json`` and ``model.safetensors``, readable here and by transformers.

The names and the nesting are those that transformers writes for ``LinrecForCausalLM``, so one format serves
both: weights carry the prefix ``model.`` and our configuration sits under the key ``linrec``, apart from
whatever transformers keeps beside it. A model of bytes gets the files of its tokenizer as well.

A save replaces two files, and a file system renames one at a time. So the weights also hold, in the metadata of their
header, the configuration that they were saved with: their rename is the moment at which the checkpoint changes, and
``config.json``, which follows, is the copy that people and other programs read. When a process is killed in between,
new weights stand beside the old ``config.json``. Two marks tell that from a ``config.json`` that somebody has edited:

* the weights hold the sha256 of the ``config.json`` that they replaced (``replaces``);
* ``config.json`` holds the sha256 of the configuration that it was saved with (``linrec_saved``), which an edit of
  its other entries leaves alone.

Where the file is the replaced one, or was saved with another configuration than the weights, the weights' own
configuration counts. In all other cases ``config.json`` does, edited or not. Weights without a configuration
(transformers' ``save_pretrained``, older versions) go with the ``config.json`` beside them.

The sizes of a configuration are compared with the header of the weights before a model is built from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from linrec.errors import CheckpointError, ConfigError
from linrec.files import tensor_writer, text_writer, write_together
from linrec.models.building import Model
from linrec.models.byte_tokenizer import has_byte_vocabulary, tokenizer_files
from linrec.models.config import Config, shown
from linrec.models.saved_weights import (
    CONFIG_FILE,
    INDEX_FILE,
    PREFIX,
    WEIGHTS_FILE,
    Header,
    built,
    check_weights,
    merged,
    weight_files,
)
from linrec.reading import open_tensors, parse_json, read_bytes

MODEL_TYPE = "linrec"
SAVED, REPLACES = "linrec_saved", "replaces"


class Saved(Protocol):
    """What a checkpoint holds: the weights of a model and its configuration."""

    config: Config

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""

    def state_dict(self) -> dict[str, Tensor]:
        """The weights by name."""


def save_checkpoint(
    model: Saved,
    folder: str | os.PathLike[str],
    files: Mapping[str, str | bytes] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write weights and configuration, and the contents ``files`` beside them (a tokenizer's, say), by name.

    ``notes`` are further entries of ``config.json``, which say nothing about the model.

    Everything is on the disk before anything is replaced; then the files change, the weights and last the
    configuration. Raises CheckpointError where ``folder`` is a file, FileError where it cannot be written.
    """
    folder = Path(folder)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise CheckpointError(f"{folder}: expected a folder to write a checkpoint to, got a file")
    taken = (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, "", ".", "..")
    for name in files or {}:
        if name in taken or name != os.path.basename(name):
            raise CheckpointError(f"{folder}: expected the names of further files, got {name!r}")
    weights = {PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    config = {
        **(notes or {}),
        "model_type": MODEL_TYPE,
        "architectures": ["LinrecForCausalLM"],
        "dtype": str(model.dtype).removeprefix("torch."),
        # transformers looks for these beside ours when it makes its settings for generation.
        **{name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "linrec": model.config.to_dict(),
    }
    own = json.dumps(config, sort_keys=True)
    metadata = {"format": "pt", MODEL_TYPE: own}
    with contextlib.suppress(CheckpointError):
        metadata[REPLACES] = _sha256(read_bytes(folder / CONFIG_FILE, CheckpointError))
    text = json.dumps({**config, SAVED: _sha256(own.encode())}, indent=2) + "\n"
    own_files = tokenizer_files() if has_byte_vocabulary(model.config) else {}
    further = {name: text_writer(content) for name, content in {**own_files, **(files or {})}.items()}
    two = {WEIGHTS_FILE: tensor_writer(weights, metadata), CONFIG_FILE: text_writer(text)}
    write_together(folder, further | two)
    if not own_files:
        _drop_byte_tokenizer(folder, set(further))


def _drop_byte_tokenizer(folder: Path, written: set[str]) -> None:
    """The byte tokenizer of another model that stood in this folder is none of this one."""
    for name, text in tokenizer_files().items():
        path = folder / name
        if name not in written and path.is_file() and path.read_bytes() == text.encode():
            path.unlink()


def load_checkpoint(
    kind: Callable[[Config], Model],
    folder: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """What ``kind`` makes of the configuration in ``folder``, with its weights.

    In evaluation mode, and in the saved dtype unless another is asked for.

    Raises CheckpointError when a file is missing, damaged, or of something else, or the two do not fit each other.
    """
    folder = Path(folder)
    text = _config_text(folder)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_tensors(path, CheckpointError)) for path in weight_files(folder)]
        config = _config(folder, text, files[0].metadata)
        header = merged(folder, [file.header() for file in files])
        _check_sizes(folder, config, header)
        _check_mlp(folder, config, header)
        model = built(kind, folder, config, sum(math.prod(shape) for _, shape in header.values()))
        check_weights(folder, model.state_dict(), header)
        weights = merged(folder, [file.tensors() for file in files])
    model.load_state_dict(weights, assign=True)
    return model.to(device=device, dtype=dtype).eval()


def read_config(folder: str | os.PathLike[str]) -> Config:
    """The model configuration of a checkpoint folder; CheckpointError if there is none."""
    folder = Path(folder)
    text = _config_text(folder)
    return _config(folder, text, _metadata(folder))


def unfinished_config(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What ``config.json`` would hold, had the last save to this folder not been cut off before it; else None.

    Raises CheckpointError for a folder that is no checkpoint.
    """
    folder = Path(folder)
    return _own_values(folder, _config_text(folder), _metadata(folder))


def config_values(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What the configuration of a folder of any format says: ``config.json``, or what it would hold, had the last save
    not been cut off before it.

    Raises CheckpointError where there is none or it is damaged.
    """
    unfinished, where = unfinished_config(folder), Path(folder) / CONFIG_FILE
    values = (
        parse_json(_config_text(Path(folder)), str(where), CheckpointError)
        if unfinished is None
        else unfinished
    )
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got {type(values).__name__}")
    return values


def check_sizes(folder: str | os.PathLike[str], config: Config | None = None) -> None:
    """Compare vocabulary, width and depth with the header of the weights; no weight is read, no model built.

    Of the folder's own configuration, or of another that its weights are to be loaded with. Raises CheckpointError.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_tensors(path, CheckpointError)) for path in weight_files(folder)]
        config = config or _config(folder, _config_text(folder), files[0].metadata)
        _check_sizes(folder, config, merged(folder, [file.header() for file in files]))


def _config_text(folder: Path) -> bytes:
    """The bytes of ``config.json``; CheckpointError where the folder has none."""
    if not os.path.isfile(folder / CONFIG_FILE):
        raise CheckpointError(
            f"{folder}: expected a checkpoint folder with {CONFIG_FILE}, found no such file"
        )
    return read_bytes(folder / CONFIG_FILE, CheckpointError)


def _metadata(folder: Path) -> dict[str, str]:
    try:
        with open_tensors(weight_files(folder)[0], CheckpointError) as file:
            return file.metadata
    except CheckpointError:
        return {}  # a configuration can be read without weights


def _own_values(folder: Path, text: bytes, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The weights' own configuration where it counts; the module says when."""
    own = metadata.get(MODEL_TYPE)
    if own is None:
        return None
    if metadata.get(REPLACES) != _sha256(text):
        saved_with = _checked_values(text, str(folder / CONFIG_FILE)).get(SAVED)
        if saved_with in (None, _sha256(own.encode())):
            return None
    return _checked_values(own, f"{folder / WEIGHTS_FILE}: configuration")


def _config(folder: Path, text: bytes, metadata: Mapping[str, str]) -> Config:
    own = _own_values(folder, text, metadata)
    where = folder / (CONFIG_FILE if own is None else WEIGHTS_FILE)
    values = _checked_values(text, str(where)) if own is None else own
    try:
        return Config.from_dict(values[MODEL_TYPE])
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _checked_values(text: bytes | str, where: str) -> dict[str, Any]:
    values = parse_json(text, where, CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got {type(values).__name__}")
    if values.get("model_type") != MODEL_TYPE or not isinstance(values.get(MODEL_TYPE), dict):
        kind = shown(values.get("model_type"))
        raise CheckpointError(
            f"{where}: expected model_type {MODEL_TYPE!r} with a 'linrec' entry, got {kind}"
        )
    return values


def _check_sizes(folder: Path, config: Config, header: Header) -> None:
    """Width, vocabulary and depth, which a layer cannot be asked about before it is built."""
    embed = header.get("embed.weight")
    expected = [config.vocab_size, config.d_model]
    if embed is not None and embed[1] != expected:
        raise CheckpointError(
            f"{folder}: embed.weight: expected {expected}, as {CONFIG_FILE} has it, got {embed[1]}"
        )
    depth = len({match[1] for name in header if (match := re.match(r"blocks\.(\d+)\.", name))})
    if embed is None or depth != config.num_layers:
        few = embed is None or depth < (config.num_layers or 0)
        raise CheckpointError(
            f"{folder}: the weights are not those of {CONFIG_FILE}: {'some missing' if few else 'some unexpected'}, "
            f"expected {config.num_layers} layers, got those of {depth}"
        )


def _check_mlp(folder: Path, config: Config, header: Header) -> None:
    expected = [config.mlp_width, config.d_model]
    for name in ("blocks.0.mlp.gate.weight", "blocks.0.mlp.up.weight"):
        if (found := header.get(name)) is not None and found[1] != expected:
            raise CheckpointError(f"{folder}: {name}: expected {expected}, got {found[1]}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
