"""Checkpoints of flash-linear-attention against the logits that were recorded of them (``record_fla.py``)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from linrec.errors import CheckpointError
from linrec.models import Config, LanguageModel
from linrec.models.formats.registry import format_of
from linrec.models.loading import convert
from linrec.stream import Session

FOLDER = Path(__file__).parent / "fla"
CASES = sorted(path.name for path in FOLDER.iterdir())


def options_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def recorded(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    found = load_file(FOLDER / name / "logits.safetensors")
    return found["tokens"], found["logits"]


def copied(name: str, folder: Path) -> Path:
    """The checkpoint alone, without what was recorded of it."""
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copy(FOLDER / name / file, folder / file)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_recorded(name: str) -> None:
    tokens, want = recorded(name)
    with torch.no_grad():
        exact = LanguageModel.load(FOLDER / name, dtype=torch.float64)(tokens).logits
        torch.testing.assert_close(exact, want, rtol=1e-9, atol=1e-9)
        model = LanguageModel.load(FOLDER / name)
        assert model.dtype == torch.float32
        torch.testing.assert_close(model(tokens).logits.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_tokens_one_by_one_padding_and_packing(name: str) -> None:
    tokens, want = recorded(name)
    model = LanguageModel.load(FOLDER / name, dtype=torch.float64)
    with torch.no_grad():
        state, steps = model.init_state(2), []
        for t in range(tokens.shape[1]):
            logits, state = model.step(tokens[:, t : t + 1], state)
            steps.append(logits)
        torch.testing.assert_close(torch.cat(steps, 1), want, rtol=1e-9, atol=1e-9)
        mask = torch.ones_like(tokens)
        mask[1, :5] = 0
        moved = torch.stack([tokens[0], tokens[1].roll(5)])
        padded = model(moved, attention_mask=mask).logits
        torch.testing.assert_close(padded[1, 5:], want[1, :-5], rtol=1e-9, atol=1e-9)
        together = model(tokens.view(1, -1), cu_seqlens=torch.tensor([0, 17, 34])).logits
        torch.testing.assert_close(together.view_as(want), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_greedy_text_streams(name: str) -> None:
    """Each token of a session is the best one of the whole sequence read at once."""
    model = LanguageModel.load(FOLDER / name, dtype=torch.float64)
    prompt = recorded(name)[0][0, :6].tolist()
    text = list(Session(model).stream(prompt, 8, temperature=0.0))
    with torch.no_grad():
        best = model(torch.tensor([prompt + text])).logits.argmax(-1)[0]
    assert text == best[5:13].tolist()


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_are_the_same_bits(name: str, tmp_path: Path) -> None:
    source = copied(name, tmp_path / "theirs")
    form = format_of(options_of(source))
    assert form is not None
    convert(LanguageModel, source, tmp_path / "ours")
    convert(LanguageModel, tmp_path / "ours", tmp_path / "back", form.name)
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) and before[n].dtype == after[n].dtype for n in before)
    assert options_of(source) == options_of(tmp_path / "back")


@pytest.mark.parametrize("name", CASES)
def test_options_are_written_so_that_they_say_the_same(name: str) -> None:
    """What a model made here would be written as, where nobody knows what it was read from."""
    values = options_of(FOLDER / name)
    form = format_of(values)
    assert form is not None
    config = form.read(values, "theirs")
    written = form.options(config)
    assert form.recognises(written)
    assert form.read(written, "ours") == config
    assert not {n for n, value in written.items() if n in values and values[n] not in (value, None)} - {
        "hidden_act"
    }


REFUSED: dict[str, dict[str, Any]] = {
    "gated_deltanet": {
        "attn": {"layers": [0], "num_heads": 2},
        "attnres_block_size": 2,
        "hidden_act": "powlu",
        "output_gate_activation": "relu",
        "some_new_option": 1,
        "num_heads": 0,
    },
    "kda": {"safe_gate": True},
    "delta_net": {"qk_norm": "l7", "qk_activation": "gelu", "use_output_norm": False},
    "gla": {"feature_map": "relu", "num_kv_heads": 1, "elementwise_affine": False},
    "retnet": {"feature_map": "relu", "num_kv_heads": 1},
    "hgrn2": {"elementwise_affine": False, "expand_ratio": 0},
    "rwkv7": {"hidden_act": "relu", "value_dim": [16, 16, 32], "a_low_rank_dim": 0},
}


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in REFUSED for option in REFUSED[name]])
def test_what_cannot_be_expressed_is_refused_by_name(name: str, option: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path / "theirs")
    values = {**options_of(folder), option: REFUSED[name][option]}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=option):
        LanguageModel.load(folder)


NEEDED: dict[str, dict[str, Any]] = {
    "rwkv7": {"value_rank": 3, "gate_rank": 8},
    "hgrn2": {"learned_bounds": True, "norm_all_heads": True},
}
OURS: dict[str, tuple[str, dict[str, Any], str]] = {
    "hgrn2": ("hgrn2", {"use_gate": True}, "use_gate"),
    "rwkv7": ("rwkv7", {"key_eps": 1e-3}, "key_eps"),
    "gated_deltanet": ("gated_delta_net", {"key_norm": "l1"}, "key_norm"),
    "kda": ("kimi_delta_attention", {"use_beta": False}, "use_beta"),
    "delta_net": ("delta_net", {"num_v_heads": 8}, "num_v_heads"),
    "gla": ("gla", {"gate_rank": 4}, "gate_rank"),
    "retnet": ("retnet", {"conv_size": 4}, "conv_size"),
}


@pytest.mark.parametrize("name", OURS)
def test_models_made_here_are_written_or_refused(name: str, tmp_path: Path) -> None:
    layer, strange, option = OURS[name]
    sizes: dict[str, Any] = {
        "d_model": 32,
        "num_heads": 4,
        "num_layers": 2,
        "pattern": (layer,),
        "mlp_size": 20,
    }
    needed = NEEDED.get(layer, {})
    if layer == "rwkv7":
        sizes |= {"norm": "layer", "mlp": "rwkv", "embed_norm": True}
    model = LanguageModel(Config(**sizes, norm_eps=1e-5, layer_options={layer: needed})).eval()
    model.save(tmp_path / "ours")
    convert(LanguageModel, tmp_path / "ours", tmp_path / "theirs", name)
    again = LanguageModel.load(tmp_path / "theirs")
    tokens = torch.randint(257, (2, 9))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    LanguageModel(Config(**sizes, layer_options={layer: {**needed, **strange}})).save(tmp_path / "strange")
    with pytest.raises(CheckpointError, match=option):
        convert(LanguageModel, tmp_path / "strange", tmp_path / "no", name)
