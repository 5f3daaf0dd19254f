"""A published model, its own tokenizer and lm-eval: beside the stock wrapper on transformers' model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Mamba2Config, Mamba2ForCausalLM, PreTrainedTokenizerFast

from linrec.evals.harness.lm_eval_model import LinrecLM

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on: größer 漢字\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mamba-2 with a byte-level BPE of its own."""
    path = tmp_path_factory.mktemp("published")
    encoder = Tokenizer(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    encoder.train_from_iterator([TEXT] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=encoder, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "n_groups": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = Mamba2ForCausalLM(Mamba2Config(**sizes, **ids, num_heads=8, head_dim=8))
    model.backbone.embeddings.weight.data.mul_(10)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", batch_size=1, dtype="float32")


def instances(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=a) for a in arguments]


PAIRS = [
    ("the quick brown", " fox"),
    ("the quick brown", " dog sleeps"),
    ("the quick brown ", "fox"),  # the space belongs to what follows
    ("", "the lazy dog"),
    ("größer", " 漢字\n"),
    (TEXT * 3, "the quick"),
]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_are_those_of_the_stock_wrapper(folder: Path, stock: Any, batch_size: int) -> None:
    ours = LinrecLM(folder, batch_size=batch_size)
    pairs = instances(*PAIRS)
    want, got = stock.loglikelihood(pairs, disable_tqdm=True), ours.loglikelihood(pairs, disable_tqdm=True)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]
    assert [score for score, _ in got] == pytest.approx([score for score, _ in want], abs=1e-4)
    texts = instances((TEXT,), ("größer",))
    want, got = (lm.loglikelihood_rolling(texts, disable_tqdm=True) for lm in (stock, ours))
    assert got == pytest.approx(want, abs=1e-4)


def test_text_is_that_of_the_stock_wrapper(folder: Path, stock: Any) -> None:
    options = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    requests = instances(*((prompt, dict(options)) for prompt in ("the quick", "größer 漢字", TEXT)))
    want, got = (lm.generate_until(requests, disable_tqdm=True) for lm in (stock, LinrecLM(folder)))
    assert got == want


def test_a_stop_that_lies_across_tokens_ends_the_text(folder: Path) -> None:
    ours = LinrecLM(folder)
    (whole,) = ours.generate_until(instances(("the", {"until": [], "max_gen_toks": 20})), disable_tqdm=True)
    stop = whole[3:6]
    options = {"until": [stop], "max_gen_toks": 20}
    (cut,) = ours.generate_until(instances(("the", options)), disable_tqdm=True)
    assert cut == whole[: whole.index(stop)]


def test_a_tokenizer_with_a_beginning_of_its_own(folder: Path, tmp_path: Path) -> None:
    """A tokenizer that writes a token before every text, as many do: once, also where the text has it already."""
    from lm_eval.models.huggingface import HFLM

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    piece = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [piece, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    stock = HFLM(pretrained=str(tmp_path), device="cpu", batch_size=1, dtype="float32")
    ours = LinrecLM(tmp_path)
    for text in ("the dog", "<|end|>the dog"):
        assert ours.tok_encode(text) == stock.tok_encode(text)
    want, got = (lm.loglikelihood(instances(*PAIRS), disable_tqdm=True) for lm in (stock, ours))
    assert [score for score, _ in got] == pytest.approx([score for score, _ in want], abs=1e-4)


@pytest.fixture(scope="module")
def hybrid(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of softmax attention and Mamba-2 heads, which linrec has no format for, with the same tokenizer."""
    from transformers import FalconH1Config, FalconH1ForCausalLM

    path = tmp_path_factory.mktemp("hybrid")
    for file in folder.glob("*token*"):
        (path / file.name).write_bytes(file.read_bytes())
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "mamba_n_heads": 4}
    mamba = {
        "mamba_d_head": 16,
        "mamba_d_ssm": 64,
        "mamba_d_state": 8,
        "mamba_n_groups": 2,
        "lm_head_multiplier": 0.7,
    }
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = FalconH1ForCausalLM(FalconH1Config(**sizes, **heads, **mamba, **ids))
    model.model.embed_tokens.weight.data.mul_(10)
    model.double().save_pretrained(path)  # long texts add up rounding
    return path


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_model_of_transformers_alone_is_scored_by_forked_states(hybrid: Path, batch_size: int) -> None:
    from lm_eval.models.huggingface import HFLM

    stock = HFLM(pretrained=str(hybrid), device="cpu", batch_size=1, dtype="float64")
    ours = LinrecLM(hybrid, batch_size=batch_size)
    pairs = instances(*PAIRS)
    want, got = (lm.loglikelihood(pairs, disable_tqdm=True) for lm in (stock, ours))
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]
    assert [score for score, _ in got] == pytest.approx([score for score, _ in want], abs=1e-4)
    options = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    requests = instances(*((prompt, dict(options)) for prompt in ("the quick", "größer 漢字", TEXT)))
    texts, mine = (lm.generate_until(requests, disable_tqdm=True) for lm in (stock, ours))
    assert mine == texts
    in_memory = LinrecLM(stock.model, tokenizer=hybrid)
    again = [score for score, _ in in_memory.loglikelihood(pairs, disable_tqdm=True)]
    assert again == pytest.approx([score for score, _ in want], abs=1e-4)


def test_the_command_line_takes_such_a_model(hybrid: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from linrec.cli import app

    done = CliRunner().invoke(app, ["generate", str(hybrid), "--prompt", "the quick", "--max-tokens", "6"])
    assert done.exit_code == 0 and done.stdout.startswith("the quick"), done.output
    (tmp_path / "config.json").write_text('{"model_type": "no such model"}')
    refused = CliRunner().invoke(app, ["generate", str(tmp_path), "--prompt", "x"])
    assert refused.exit_code == 1 and "neither linrec nor transformers" in refused.stderr


@pytest.mark.parametrize("which", ["folder", "hybrid"])
def test_side_by_side_with_transformers_own_model(which: str, request: pytest.FixtureRequest) -> None:
    from linrec.evals.harness.side_by_side import side_by_side

    small = {"questions": 6, "max_document_bytes": 500}
    report = side_by_side(
        request.getfixturevalue(which),
        ["linrec_stdlib_choice"],
        shots=[0],
        limit=6,
        metadata=small,
        progress=False,
    )
    (run,) = report["runs"]
    assert run["requests"] == 24 and run["largest_difference"] < 1e-3
    assert run["hf"]["scores"] == run["linrec"]["scores"]
    assert run["fewer_tokens"] > 2
