"""Published Mamba checkpoints against transformers' own models, and against a loop for their authors' layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from linrec.errors import CheckpointError
from linrec.models import Config, LanguageModel
from linrec.models.loading import convert
from linrec.stream import Session

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
MAMBA2 = {**SMALL, "num_heads": 8, "head_dim": 8, "n_groups": 2}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba2": ("Mamba2", MAMBA2),
    "mamba2 tied": ("Mamba2", {**MAMBA2, "tie_word_embeddings": True}),
    "mamba2 biases and limits": (
        "Mamba2",
        {**MAMBA2, "use_bias": True, "use_conv_bias": False, "time_step_limit": [0.005, 0.05]},
    ),
    "mamba2 other sizes": (
        "Mamba2",
        {**MAMBA2, "expand": 3, "num_heads": 4, "head_dim": 24, "conv_kernel": 3},
    ),
    "mamba": ("Mamba", SMALL),
    "mamba biases": ("Mamba", {**SMALL, "use_bias": True, "use_conv_bias": False, "time_step_rank": 5}),
    "mamba untied": ("Mamba", {**SMALL, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
    "falcon_mamba": ("FalconMamba", {**SMALL, "mixer_rms_eps": 1e-3}),
}


def published(name: str, folder: Path, **saving: Any) -> Any:
    """A random model of transformers, every parameter drawn, and its checkpoint in ``folder``."""
    family, options = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options, **TOKENS)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder, **saving)
    return model


@pytest.mark.parametrize("name", CASES)
def test_logits_decoding_and_text_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = published(name, tmp_path)
    ours = LanguageModel.load(tmp_path)
    tokens = torch.randint(97, (2, 37))
    with torch.no_grad():
        want = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens).logits, want, rtol=1e-5, atol=1e-5)
        wide = LanguageModel.load(tmp_path, dtype=torch.float64)
        exact = theirs.double()(tokens).logits.double()
        torch.testing.assert_close(wide(tokens).logits, exact, rtol=1e-5, atol=1e-5)
        state, steps = ours.init_state(2), []
        for t in range(tokens.shape[1]):
            logits, state = ours.step(tokens[:, t : t + 1], state)
            steps.append(logits)
        torch.testing.assert_close(torch.cat(steps, 1), want, rtol=1e-5, atol=1e-5)
        text = theirs.float().generate(tokens[:1, :9], max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert list(Session(ours).stream(tokens[0, :9].tolist(), 12, temperature=0.0)) == text[0, 9:].tolist()


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_are_the_same_bits(name: str, tmp_path: Path) -> None:
    published(name, tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").write_text('{"some": "tokenizer"}')
    convert(LanguageModel, tmp_path / "theirs", tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "linrec"
    to = json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"]
    convert(LanguageModel, tmp_path / "ours", tmp_path / "back", to)
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) and before[n].dtype == after[n].dtype for n in before)
    configs = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("theirs", "back")]
    assert configs[0] == configs[1]
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == b'{"some": "tokenizer"}'


def test_several_files_of_weights_and_a_half_precision(tmp_path: Path) -> None:
    theirs = published("mamba2", tmp_path / "one").bfloat16()
    theirs.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    ours = LanguageModel.load(tmp_path / "many")
    assert ours.dtype == torch.bfloat16
    for name, parameter in LanguageModel.load(tmp_path / "one", dtype=torch.bfloat16).state_dict().items():
        assert torch.equal(parameter, ours.state_dict()[name])


REFUSED = {
    "hidden_act": "gelu",
    "head_dim": 3,
    "some_new_option": True,
    "vocab_size": 0,
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(option: str, tmp_path: Path) -> None:
    published("mamba2", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, option: REFUSED[option]}))
    with pytest.raises(CheckpointError, match=option):
        LanguageModel.load(tmp_path)


def test_weights_of_other_sizes_are_refused(tmp_path: Path) -> None:
    published("mamba2", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for option, value in {
        "num_hidden_layers": 3,
        "state_size": 4,
        "vocab_size": 96,
        "use_bias": True,
    }.items():
        (tmp_path / "config.json").write_text(json.dumps({**values, option: value}))
        with pytest.raises(CheckpointError, match=r"expected|missing"):
            LanguageModel.load(tmp_path)


OURS: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "falcon_mamba": {"inner_norm_eps": 1e-4},
    "mamba2": {"num_groups": 2, "state_size": 8, "time_step_limit": [0.001, 0.1]},
    "mamba2 heads of its own": {"num_heads": 8, "state_size": 8},
}


@pytest.mark.parametrize("name", OURS)
def test_a_model_made_here_is_one_of_transformers(name: str, tmp_path: Path) -> None:
    to = name.split()[0]
    layer = to.removeprefix("falcon_")
    sizes: dict[str, Any] = {"d_model": 32, "num_heads": 4, "num_layers": 2, "mlp_ratio": None}
    ours = LanguageModel(Config(pattern=(layer,), layer_options={layer: OURS[name]}, **sizes)).eval()
    ours.save(tmp_path / "ours")
    convert(LanguageModel, tmp_path / "ours", tmp_path / "theirs", to)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    tokens = torch.randint(257, (2, 19))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, rtol=1e-5, atol=1e-5)


def test_a_model_that_a_format_cannot_express_is_refused(tmp_path: Path) -> None:
    LanguageModel(Config(d_model=32, num_heads=2)).save(tmp_path / "ours")
    with pytest.raises(CheckpointError, match="mamba2 layers alone, got gated_delta_net and an MLP"):
        convert(LanguageModel, tmp_path / "ours", tmp_path / "theirs", "mamba2")
    assert not (tmp_path / "theirs").exists()


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match=r"'gpt2'.*mamba2"):
        LanguageModel.load(tmp_path)


AUTHORS = {
    "mamba2 tied": {"layer": "Mamba2", "d_state": 8, "headdim": 8, "ngroups": 2},
    "mamba": {"d_state": 8},
}


@pytest.mark.parametrize("name", AUTHORS)
def test_the_layout_of_the_authors(name: str, tmp_path: Path) -> None:
    """Their names and options for the same numbers; a padded vocabulary, and the embedding twice."""
    theirs = published(name, tmp_path / "transformers")
    rows = torch.zeros(104 - 97, 32)
    weights = {n.replace("embeddings", "embedding"): t for n, t in theirs.state_dict().items()}
    weights["backbone.embedding.weight"] = torch.cat([weights["backbone.embedding.weight"], rows])
    weights["lm_head.weight"] = weights["backbone.embedding.weight"]
    folder = tmp_path / "authors"
    folder.mkdir()
    torch.save(weights, folder / "pytorch_model.bin")
    options = {"d_model": 32, "n_layer": 2, "vocab_size": 97, "ssm_cfg": AUTHORS[name], "rms_norm": True}
    options |= {"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8}
    (folder / "config.json").write_text(json.dumps(options))
    tokens = torch.randint(97, (2, 21))
    with torch.no_grad():
        got = LanguageModel.load(folder)(tokens).logits
        torch.testing.assert_close(got[..., :97], theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    convert(LanguageModel, folder, tmp_path / "ours")
    convert(LanguageModel, tmp_path / "ours", tmp_path / "back", name.split()[0] + "-authors")
    back = torch.load(tmp_path / "back" / "pytorch_model.bin", weights_only=True)
    assert back.keys() == weights.keys() and all(torch.equal(back[n], weights[n]) for n in weights)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == options
    convert(LanguageModel, folder, tmp_path / "across", name.split()[0])
    family = CASES[name][0]
    across = getattr(transformers, f"{family}ForCausalLM").from_pretrained(tmp_path / "across")
    with torch.no_grad():
        torch.testing.assert_close(across(tokens).logits, got, rtol=1e-5, atol=1e-5)


def test_a_pickle_that_is_more_than_tensors_is_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"backbone.embedding.weight": Attack()}, tmp_path / "pytorch_model.bin")
    options = {"d_model": 32, "n_layer": 2, "vocab_size": 97, "ssm_cfg": {}, "rms_norm": True}
    (tmp_path / "config.json").write_text(json.dumps(options))
    with pytest.raises(CheckpointError, match="not a file of weights"):
        LanguageModel.load(tmp_path)
    assert not (tmp_path / "ran").exists()
