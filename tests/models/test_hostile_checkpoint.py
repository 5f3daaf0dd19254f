"""Whatever stands in a checkpoint's files: a model, or one typed error that names the file, in no time and memory."""

from __future__ import annotations

import json
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from linrec import models
from linrec.errors import CheckpointError, ConfigError
from linrec.layers import LAYERS
from linrec.models.config import argument_types

SMALL: dict[str, Any] = {"vocab_size": 17, "d_model": 16, "num_heads": 2}
PATTERN = ("gated_delta_net", "softmax_attention")
HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 10**6, 10**12, 10**30, 1.5, float("nan"), float("inf"), 1e308, -1e308),
    *("", "x", "gla", "\ud800", "a\0b", "x" * 10**5, [], [1], [[]], ["x"], [None], [{}], ["gla"] * 10**5, {}),
    *(
        {"x": 1},
        {"gla": 1},
        {"gla": {"conv_size": [4]}},
        {"gla": {"x": 1}},
        {"gated_delta_net": {"num_heads": 10**9}},
    ),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    models.LanguageModel(models.Config(**SMALL, pattern=PATTERN)).save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def attempt(folder: Path, what: object = "") -> models.LanguageModel | None:
    """The model, or None after a CheckpointError that names the folder, shortly; in a second and 100 MB at most."""
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    model = None
    try:
        model = models.LanguageModel.load(folder)
    except CheckpointError as error:
        message = str(error)
        assert str(folder) in message and len(message) < 2000, what
    assert time.process_time() - start < 1, what
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 * 1024, what
    return model


def test_hostile_values_of_every_option_of_another_project(folder: Path) -> None:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    Mamba2ForCausalLM(Mamba2Config(**sizes, num_heads=8, head_dim=8)).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert attempt(folder) is not None
    for option in config:
        for value in HOSTILE:
            path.write_text(json.dumps({**config, option: value}))
            attempt(folder, (option, value))


def test_hostile_values_of_every_field(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for field in [*config["linrec"], "unknown"]:
        for value in HOSTILE:
            path.write_text(json.dumps({**config, "linrec": {**config["linrec"], field: value}}))
            model = attempt(folder, (field, value))
            if model is not None:  # what it is taken for is what stands there
                assert getattr(model.config, field) == value or (field, value) == ("num_layers", None)
    for field in config:
        for value in HOSTILE:
            path.write_text(json.dumps({**config, field: value}))
            assert attempt(folder, (field, value)) is None or field not in ("model_type", "linrec")


def test_sizes_that_the_weights_do_not_have(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for field in ("vocab_size", "d_model", "num_heads", "num_layers", "mlp_ratio"):
        for value in (10**3, 10**6, 10**9, 10**12):
            path.write_text(json.dumps({**config, "linrec": {**config["linrec"], field: value}}))
            assert attempt(folder, (field, value)) is None, (field, value)


@pytest.mark.parametrize("field", ["vocab_size", "d_model", "num_layers"])
def test_transformers_does_not_build_them_either(folder: Path, field: str) -> None:
    huggingface = pytest.importorskip("linrec.models.huggingface")
    from transformers import AutoModelForCausalLM

    path = folder / "config.json"
    config = json.loads(path.read_text())
    for load in (AutoModelForCausalLM.from_pretrained, huggingface.LinrecForCausalLM.from_pretrained):
        path.write_text(json.dumps({**config, "linrec": {**config["linrec"], field: 10**8}}))
        with pytest.raises(CheckpointError, match=str(folder)):
            load(folder)
        path.write_text(json.dumps(config))
        assert load(folder).config.vocab_size == 17


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_hostile_options_of_every_layer(layer: str, tmp_path: Path) -> None:
    models.LanguageModel(models.Config(**SMALL, pattern=(layer,))).save(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for option in argument_types(layer):
        values: list[Any] = [10**9, 30_000, -1, 0, 3, 1e300, "x", None, True, [], {}]
        for value in values:
            config["linrec"]["layer_options"] = {layer: {option: value}}
            path.write_text(json.dumps(config))
            attempt(tmp_path, (layer, option, value))


@pytest.mark.parametrize("layer", LAYERS)
def test_building_for_weights_is_building(layer: str, tmp_path: Path) -> None:
    """Random parameters are left out while loading; constants that no file holds are not."""
    model = models.LanguageModel(models.Config(**SMALL, pattern=(layer,)))
    model.save(tmp_path)
    before = torch.get_rng_state()
    again = models.LanguageModel.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn, which another thread might notice
    buffers = dict(again.named_buffers())
    assert again.fingerprint() == model.fingerprint()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_bytes_changed_anywhere(folder: Path, name: str) -> None:
    path, draw = folder / name, random.Random(0)
    whole = path.read_bytes()
    header = len(whole) if name == "config.json" else 8 + int.from_bytes(whole[:8], "little")
    for number in range(500):
        content = bytearray(whole)
        for _ in range(1 + number % 3):
            content[draw.randrange(header)] = draw.randrange(256)
        path.write_bytes(content)
        attempt(folder, content)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_cut_anywhere(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    for length in (*range(0, min(len(whole) - 1, 600), 3), *range(600, len(whole) - 1, 499)):
        path.write_bytes(whole[:length])
        assert attempt(folder, length) is None, length


def rewritten(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], Any]:
    def apply(path: Path) -> None:
        tensors = {name: t.clone() for name, t in load_file(path).items()}
        change(tensors)
        save_file(tensors, path)

    return apply


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def apply(path: Path) -> None:
        content = path.read_bytes()
        length = 8 + int.from_bytes(content[:8], "little")
        values = json.loads(content[8:length])
        change(values)
        header = json.dumps(values).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[length:])

    return apply


def replaced(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def apply(path: Path) -> None:
        path.unlink()
        make(path)

    return apply


NORM = "model.norm.weight"
WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "folder": replaced(Path.mkdir),
    "loop": replaced(lambda path: path.symlink_to(path)),
    "pipe": replaced(os.mkfifo),
    "nowhere": replaced(lambda path: path.symlink_to(path.parent / "nothing")),
    "empty": lambda path: path.write_bytes(b""),
    "pickle": replaced(lambda path: torch.save({"model.norm.weight": torch.ones(16)}, path)),
    "header beyond the file": lambda path: path.write_bytes(
        (2**62).to_bytes(8, "little") + path.read_bytes()[8:]
    ),
    "no tensors": lambda path: path.write_bytes(save({})),
    "a tensor missing": rewritten(lambda t: t.pop(NORM)),
    "a tensor too many": rewritten(lambda t: t.update(x=torch.zeros(1))),
    "twice, with and without prefix": rewritten(lambda t: t.update({"norm.weight": t[NORM].clone()})),
    "other shape": rewritten(lambda t: t.update({NORM: torch.zeros(4, 4)})),
    "no shape": rewritten(lambda t: t.update({NORM: torch.zeros(())})),
    "int8": rewritten(lambda t: t.update({NORM: torch.zeros(16, dtype=torch.int8)})),
    "bool": rewritten(lambda t: t.update({NORM: torch.zeros(16, dtype=torch.bool)})),
    "float8": rewritten(lambda t: t.update({NORM: torch.zeros(16).to(torch.float8_e4m3fn)})),
    "complex": with_header(lambda h: h[NORM].update(dtype="C64", shape=[8])),
    "unknown dtype": with_header(lambda h: h[NORM].update(dtype="F31")),
    "negative shape": with_header(lambda h: h[NORM].update(shape=[-16])),
    "huge shape": with_header(lambda h: h[NORM].update(shape=[2**40, 2**40])),
    "empty and huge": with_header(lambda h: h[NORM].update(shape=[2**62, 0], data_offsets=[0, 0])),
    "overlap": with_header(lambda h: h[NORM].update(data_offsets=[0, 64])),
    "a number for a tensor": with_header(lambda h: h.update({NORM: 3})),
    "metadata no text": with_header(lambda h: h.update(__metadata__={"linrec": 3})),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_none(folder: Path, kind: str) -> None:
    WEIGHTS[kind](folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=str(folder)):
        models.LanguageModel.load(folder)


@pytest.mark.parametrize(
    "own", ["", "[]", "3", "[" * 10**5, '{"model_type": "linrec", "linrec": {"d_model": 1e9}}']
)
def test_a_configuration_inside_the_weights_is_no_better(folder: Path, own: str) -> None:
    with_header(lambda h: h.update(__metadata__={"linrec": own}))(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        models.LanguageModel.load(folder)


@pytest.mark.parametrize(
    "names", [None, 3, {}, {"x": 3}, {"x": ".."}, {"x": ""}, {"x": "../model-1.safetensors"}]
)
def test_an_index_that_is_none(folder: Path, names: Any) -> None:
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match=str(folder)):
        models.LanguageModel.load(folder)


@pytest.mark.parametrize("place", ["n" * 5000, "a\0b", "", "nothing/here"])
def test_no_folder(tmp_path: Path, place: str) -> None:
    with pytest.raises(CheckpointError, match="expected a checkpoint folder"):
        models.LanguageModel.load(tmp_path / place)


def test_a_key_twice_and_deep_nesting(folder: Path) -> None:
    path = folder / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"d_model": 16,', '"d_model": 16, "d_model": 16,'))
    with pytest.raises(CheckpointError, match="'d_model' twice"):
        models.LanguageModel.load(folder)
    for depth in (10, 100, 300, 500, 900, 990, 10**5):
        path.write_text(text.replace('"layer_options": {}', '"layer_options": ' + "[" * depth + "]" * depth))
        assert attempt(folder, depth) is None


@pytest.mark.parametrize(
    "values",
    [
        {"pattern": 3},
        {"pattern": [3]},
        {"pattern": [["gla"]]},
        {"pattern": {"gla": 1}},
        {"num_layers": 10**12},
        {"d_model": 10**5000},
        {"mlp_ratio": 1e300},
        {"mlp_ratio": True},
        {"mlp_ratio": "3"},
        {"norm_eps": 10**400},
        {"tie_embeddings": 1},
        {"eos_token_id": True},
        {"eos_token_id": [1]},
        {"layer_options": [1]},
        {"layer_options": {"gla": {"conv_size": True}}},
        {"layer_options": {"gla": {"conv_size": 4.0}}},
        {"layer_options": {"gla": {"use_gate": 1}}},
        {"layer_options": {"gla": {"expand_v": float("nan")}}},
        {"layer_options": {"gla": {"norm_eps": -1e-5}}},
        {"layer_options": {"gla": {"backend": None}}},
    ],
)
def test_values_of_other_types_are_refused_by_field(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        models.Config(**values)
