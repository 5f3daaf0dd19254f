"""Checkpoints: they come back equal, and whatever is not one is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from linrec import files, models
from linrec.errors import CheckpointError


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tmp_path: Path, tied: bool) -> None:
    model = models.LanguageModel(models.Config(d_model=16, num_heads=2, tie_embeddings=tied))
    model.save(tmp_path / "new" / "folder")
    before = torch.get_rng_state()
    again = models.LanguageModel.load(tmp_path / "new" / "folder")
    assert torch.equal(torch.get_rng_state(), before)
    assert again.fingerprint() == model.fingerprint()
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    stored = sum(t.numel() for t in load_file(tmp_path / "new" / "folder" / "model.safetensors").values())
    assert stored == sum(p.numel() for p in model.parameters())


def test_the_dtype_is_kept_or_changed(hybrid: models.LanguageModel, tmp_path: Path) -> None:
    hybrid.bfloat16().save(tmp_path)
    assert models.LanguageModel.load(tmp_path).embed.weight.dtype == torch.bfloat16
    assert models.LanguageModel.load(tmp_path, dtype=torch.float64).embed.weight.dtype == torch.float64


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_an_interrupted_save_loses_nothing(
    hybrid: models.LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    hybrid.save(tmp_path)
    expected = hybrid.fingerprint()

    def half(tensors: Any, path: Path, metadata: Any = None) -> None:
        path.write_bytes(b"half a file")
        raise stop

    monkeypatch.setattr(files, "save_file", half)
    with torch.no_grad():
        hybrid.embed.weight.zero_()
    with pytest.raises(stop):
        hybrid.save(tmp_path)
    assert models.LanguageModel.load(tmp_path).fingerprint() == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def rewrite(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return apply


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no such file"),
    "truncated": (cut, "truncated"),
    "not safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle" * 9),
        "not safetensors",
    ),
    "broken json": (lambda f: (f / "config.json").write_text('{"model_type":'), "expected JSON"),
    "binary json": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "expected JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
    "foreign": (rewrite(lambda c: c.update(model_type="gpt2")), "'gpt2'"),
    "unknown key": (rewrite(lambda c: c["linrec"].update(widht=3)), "widht"),
    "wrong type": (rewrite(lambda c: c["linrec"].update(pattern=3)), "config.json"),
    "other size": (rewrite(lambda c: c["linrec"].update(vocab_size=98)), "expected \\[98"),
    "other depth": (rewrite(lambda c: c["linrec"].update(num_layers=4)), "missing"),
    "weight missing": (drop_a_weight, "1 missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(hybrid: models.LanguageModel, tmp_path: Path, kind: str) -> None:
    hybrid.save(tmp_path)
    damage, message = DAMAGE[kind]
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        models.LanguageModel.load(tmp_path)


def test_no_folder_and_a_file_for_a_folder(hybrid: models.LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a checkpoint folder"):
        models.LanguageModel.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="got a file"):
        hybrid.save(tmp_path / "file")
