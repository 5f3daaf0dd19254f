"""Checkpoints: a folder with ``config.json`` and ``model.safetensors``, readable here and by transformers.

The names and the nesting are those that transformers writes for ``LinrecForCausalLM``, so one format serves
both: weights carry the prefix ``model.`` and our configuration sits under the key ``linrec``, apart from
whatever transformers keeps beside it. A model of bytes gets the files of its tokenizer as well.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from linrec.errors import CheckpointError, ConfigError
from linrec.files import write_tensors, write_text
from linrec.models.byte_tokenizer import has_byte_vocabulary, tokenizer_files
from linrec.models.config import Config
from linrec.models.language_model import LanguageModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MODEL_TYPE = "linrec"
PREFIX = "model."


def save_checkpoint(model: LanguageModel, folder: str | os.PathLike[str]) -> None:
    """Write the weights, then the configuration, each under a temporary name that is then renamed."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder to write a checkpoint to, got a file")
    weights = {PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    config = {
        "model_type": MODEL_TYPE,
        "architectures": ["LinrecForCausalLM"],
        "dtype": dtype,
        # transformers looks for these beside ours when it makes its settings for generation.
        **{name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "linrec": model.config.to_dict(),
    }
    _write_tokenizer(model.config, folder)
    write_tensors(folder / WEIGHTS_FILE, weights, {"format": "pt"})
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def _write_tokenizer(config: Config, folder: Path) -> None:
    """The byte tokenizer beside a model of bytes; one from another model that stood here is none of this one."""
    for name, text in tokenizer_files().items():
        path = folder / name
        if has_byte_vocabulary(config):
            write_text(path, text)
        elif path.is_file() and path.read_bytes() == text.encode():
            path.unlink()


def load_checkpoint(
    folder: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """The model in ``folder``, in evaluation mode and in the saved dtype unless another is asked for.

    Raises CheckpointError when a file is missing, damaged, or of something else.
    """
    folder = Path(folder)
    config = read_config(folder)
    with torch.random.fork_rng(devices=[]):  # building draws weights that are thrown away at once
        model = LanguageModel(config)
    weights = _read_weights(folder)
    _check_weights(folder, model.state_dict(), weights)
    model.load_state_dict(weights, assign=True)
    return model.to(device=device, dtype=dtype).eval()


def read_config(folder: Path) -> Config:
    """The model configuration of a checkpoint folder; CheckpointError if there is none."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: expected a checkpoint folder with {CONFIG_FILE}, found no such file"
        )
    values = _read_json(path)
    if values.get("model_type") != MODEL_TYPE or not isinstance(values.get("linrec"), dict):
        kind = values.get("model_type")
        raise CheckpointError(
            f"{path}: expected model_type {MODEL_TYPE!r} with a 'linrec' entry, got {kind!r}"
        )
    try:
        return Config.from_dict(values["linrec"])
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected JSON, could not read it ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors, without the prefix; transformers splits large models over several files and an index."""
    files = [WEIGHTS_FILE]
    if not (folder / WEIGHTS_FILE).is_file() and (folder / INDEX_FILE).is_file():
        weight_map = _read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{folder / INDEX_FILE}: expected a 'weight_map' of file names")
        files = sorted({Path(str(name)).name for name in weight_map.values()})
    weights: dict[str, Tensor] = {}
    for file in files:
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder}: expected the weights in {file}, found no such file")
        try:
            tensors = load_file(folder / file)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder / file}: truncated or damaged, or not safetensors ({error})"
            ) from error
        weights.update({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})
    return weights


def _check_weights(folder: Path, expected: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            f"{folder}: the weights are not those of {CONFIG_FILE}: "
            f"{len(missing)} missing {missing[:3]}, {len(extra)} unexpected {extra[:3]}"
        )
    for name, tensor in expected.items():
        if got[name].shape != tensor.shape:
            raise CheckpointError(
                f"{folder}: {name}: expected {list(tensor.shape)}, got {list(got[name].shape)}"
            )
