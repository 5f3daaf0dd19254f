"""A save that is killed, fails or meets another one leaves one whole checkpoint, for linrec and for transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from linrec import files, models
from linrec.errors import CheckpointError, FileError
from linrec.models import checkpoint
from tests.crashes import fork, killed_everywhere, on_a_full_disk, wait

TWO = ["config.json", "model.safetensors"]


def build(num_heads: int, dtype: torch.dtype = torch.float32) -> models.LanguageModel:
    """Models of other heads have equal shapes: nothing but the configuration tells them apart."""
    torch.manual_seed(num_heads)
    config = models.Config(vocab_size=11, d_model=16, num_heads=num_heads, pattern=("linear_attention",))
    return models.LanguageModel(config).to(dtype).eval()


A, B = build(2), build(4)


def loaded(folder: Path) -> str:
    return models.LanguageModel.load(folder).fingerprint()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def unfinished(folder: Path, old: Callable[[Path], Any]) -> None:
    """``old`` written to the folder, then B's weights but no longer B's config.json."""
    old(folder)
    config = (folder / "config.json").read_bytes()
    B.save(folder)
    (folder / "config.json").write_bytes(config)


def as_an_older_version(folder: Path) -> None:
    A.save(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["linrec_saved"]
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    save_file({n: t.clone() for n, t in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def as_transformers(folder: Path) -> None:
    huggingface = pytest.importorskip("linrec.models.huggingface")
    huggingface.LinrecForCausalLM.from_linrec(build(2)).save_pretrained(folder)


def test_killed_anywhere_it_is_the_old_or_the_new(tmp_path: Path) -> None:
    found, mixed = [], 0
    A.save(tmp_path)
    for _ in killed_everywhere(lambda: B.save(tmp_path), [files, checkpoint], step=3):
        found.append(loaded(tmp_path))
        heads = json.loads((tmp_path / "config.json").read_text())["linrec"]["num_heads"]
        mixed += found[-1] != A.fingerprint() and heads == 2
        if found[-1] != A.fingerprint():
            A.save(tmp_path)
    assert set(found) == {A.fingerprint(), B.fingerprint()}
    assert mixed  # it was killed between the two renames as well
    A.save(tmp_path)
    assert names(tmp_path) == TWO


def test_killed_in_a_new_folder_there_is_none_or_the_new(tmp_path: Path) -> None:
    for line in killed_everywhere(lambda: B.save(tmp_path / "x"), [files, checkpoint], step=4):
        if (tmp_path / "x" / "config.json").exists():
            assert loaded(tmp_path / "x") == B.fingerprint(), line
        else:
            with pytest.raises(CheckpointError, match=r"config\.json, found no such file"):
                loaded(tmp_path / "x")
        shutil.rmtree(tmp_path / "x", ignore_errors=True)


@pytest.mark.parametrize("old", [A.save, as_an_older_version, as_transformers])
def test_killed_between_the_two_files(old: Callable[[Path], Any], tmp_path: Path) -> None:
    unfinished(tmp_path, old)
    assert loaded(tmp_path) == B.fingerprint()
    assert checkpoint.read_config(tmp_path) == B.config
    huggingface = pytest.importorskip("linrec.models.huggingface")
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(11)[None]
    expected = B(tokens).logits
    for cls in (AutoModelForCausalLM, huggingface.LinrecForCausalLM):
        model = cls.from_pretrained(tmp_path)
        assert model.config.linrec["num_heads"] == 4
        torch.testing.assert_close(model(tokens).logits, expected)
    B.save(tmp_path)  # and the next save makes both files whole
    assert json.loads((tmp_path / "config.json").read_text())["linrec"]["num_heads"] == 4


@pytest.mark.parametrize("other", ['{"model_type": "mamba2"}', "no JSON"])
def test_killed_over_the_configuration_of_something_else(tmp_path: Path, other: str) -> None:
    unfinished(tmp_path, lambda folder: (folder / "config.json").write_text(other))
    assert loaded(tmp_path) == B.fingerprint()
    (tmp_path / "config.json").write_text(other + " ")  # that is not the file which was replaced
    with pytest.raises(CheckpointError, match=r"config\.json"):
        loaded(tmp_path)


def test_weights_of_another_checkpoint_bring_their_configuration(tmp_path: Path) -> None:
    A.save(tmp_path / "a")
    B.save(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "model.safetensors", tmp_path / "a")
    assert loaded(tmp_path / "a") == B.fingerprint()


@pytest.mark.parametrize("saved", [A.save, as_an_older_version, as_transformers])
def test_an_edited_configuration_counts(saved: Callable[[Path], Any], tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["linrec"]["norm_eps"] = 1e-3
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert models.LanguageModel.load(tmp_path).config.norm_eps == 1e-3
    del config["linrec"]["num_heads"]  # a file written by hand holds what it needs and no mark of ours
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "linrec", "linrec": config["linrec"]}))
    assert models.LanguageModel.load(tmp_path).config.num_heads == 4


def test_over_and_under_transformers(tmp_path: Path) -> None:
    B.save(tmp_path)
    as_transformers(tmp_path)
    assert loaded(tmp_path) == A.fingerprint()
    B.save(tmp_path)
    assert loaded(tmp_path) == B.fingerprint()


def test_further_files_are_part_of_a_save(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(A, tmp_path, {"tokenizer.json": "{}", "notes": b"\xff"})
    assert names(tmp_path) == ["config.json", "model.safetensors", "notes", "tokenizer.json"]
    assert (tmp_path / "notes").read_bytes() == b"\xff" and loaded(tmp_path) == A.fingerprint()
    for name in ("config.json", "a/b", "", "..", "/x"):
        with pytest.raises(CheckpointError, match="further files"):
            checkpoint.save_checkpoint(A, tmp_path, {name: ""})


def test_a_full_disk_keeps_the_old(tmp_path: Path) -> None:
    A.save(tmp_path)

    def save() -> None:
        with pytest.raises(FileError, match="could not be written"):
            checkpoint.save_checkpoint(B, tmp_path, {"tokenizer.json": "{}"})

    for room in (0, 1, 300, 3000):
        assert on_a_full_disk(save, room) == 0
        assert loaded(tmp_path) == A.fingerprint() and names(tmp_path) == TWO


def test_two_writers_and_a_reader(tmp_path: Path) -> None:
    A.save(tmp_path)
    both = {A.fingerprint(), B.fingerprint()}

    def repeat(model: models.LanguageModel) -> None:
        for _ in range(40):
            model.save(tmp_path)

    writers = [fork(lambda: repeat(A)), fork(lambda: repeat(B))]
    seen = {loaded(tmp_path) for _ in range(60)}
    assert [wait(writer) for writer in writers] == [0, 0]
    assert seen <= both and loaded(tmp_path) in both and names(tmp_path) == TWO
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["linrec"]["num_heads"] == models.LanguageModel.load(tmp_path).config.num_heads
