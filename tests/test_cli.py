"""The ``linrec`` command: what it prints, what it writes, and one clean line for every typed error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from linrec.cli import app
from linrec.errors import LinrecError
from linrec.rule import RULES

TINY = ["--pattern", "gated_delta_net,softmax_attention", "--d-model", "32", "--heads", "2"]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for n in range(30):
        (folder / f"part{n}.txt").write_text(f"{n}: the quick brown fox jumps over the lazy dog.\n" * 20)
    return folder


@pytest.fixture(scope="module")
def checkpoint(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "model"
    done = call("train", "--text", texts, "--out", out, *TINY, "--steps", "12", "--seq-len", "64")
    assert done.exit_code == 0, done.output
    return out


def test_train_writes_a_checkpoint_and_its_record(checkpoint: Path) -> None:
    names = {path.name for path in checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "training.json"} <= names
    record = json.loads((checkpoint / "training.json").read_text())
    assert len(record["losses"]) == 12
    assert record["losses"][-1] < record["losses"][0]
    assert record["held_out_bits_per_byte"] > 0


def test_train_does_not_replace_a_checkpoint_unasked(checkpoint: Path, texts: Path) -> None:
    before = (checkpoint / "model.safetensors").read_bytes()
    done = call("train", "--text", texts, "--out", checkpoint, *TINY, "--steps", "1")
    assert done.exit_code == 1
    assert "--force" in done.stderr
    assert (checkpoint / "model.safetensors").read_bytes() == before


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"]
    )
    made.train_from_iterator(["the quick brown fox jumps over the lazy dog.\n"] * 5, trainer)
    (tmp_path / "words").mkdir()
    made.save(str(tmp_path / "words" / "tokenizer.json"))
    (tmp_path / "words" / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return tmp_path / "words"


def test_train_with_a_tokenizer_and_go_on_from_there(tokenizer: Path, texts: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "model", tmp_path / "again"
    sizes = ("--steps", "40", "--seq-len", "32", "--batch-size", "4")
    done = call("train", "--text", texts, "--out", out, "--tokenizer", tokenizer, *TINY, *sizes)
    assert done.exit_code == 0, done.output
    config = json.loads((out / "config.json").read_text())["linrec"]
    assert (config["vocab_size"], config["eos_token_id"], config["bos_token_id"]) == (320, 0, None)
    assert (out / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    text = call("generate", out, "--prompt", "the quick", "--max-tokens", "8")
    assert text.exit_code == 0 and text.stdout.startswith("the quick")
    done = call("train", "--text", texts, "--out", again, "--init", out, *sizes)
    assert done.exit_code == 0, done.output
    assert (again / "tokenizer.json").is_file()
    first, second = (json.loads((folder / "training.json").read_text()) for folder in (out, again))
    assert second["losses"][0] < first["losses"][-1] + 0.5 < first["losses"][0]
    assert second["held_out_bits_per_byte"] < first["held_out_bits_per_byte"]
    refused = call("train", "--text", texts, "--out", tmp_path / "x", "--init", out, "--d-model", "8")
    assert refused.exit_code == 1 and "leave out --d-model" in refused.stderr


def test_generate_continues_a_saved_session(checkpoint: Path, tmp_path: Path) -> None:
    session = tmp_path / "stream.safetensors"
    whole = call("generate", checkpoint, "--prompt", "7: the", "--max-tokens", "20")
    first = call("generate", checkpoint, "--prompt", "7: the", "--max-tokens", "12", "--session", session)
    second = call("generate", checkpoint, "--max-tokens", "8", "--session", session)
    assert whole.exit_code == first.exit_code == second.exit_code == 0
    assert whole.stdout.startswith("7: the")
    assert first.stdout.removesuffix("\n") + second.stdout == whole.stdout


def test_eval_prints_a_table_and_writes_the_report(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    small = '{"questions": 8, "max_document_bytes": 2000}'
    done = call("eval", checkpoint, "--limit", "2", "--out", out, "--metadata", small)
    assert done.exit_code == 0, done.output
    assert "bits_per_byte" in done.stdout
    assert "acc_norm" in done.stdout
    assert set(json.loads(out.read_text())["tasks"]) == {"linrec_stdlib_bpb", "linrec_stdlib_choice"}


def test_rules_come_from_the_registry() -> None:
    import linrec.rules  # noqa: F401
    from linrec.table import support_table

    done = call("rules", "--explain")
    assert done.exit_code == 0, done.output
    first = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert first[: 1 + len(RULES)] == ["rule", *sorted(RULES)]
    assert "one row times a weight, 3352, 768" in done.stdout and "\nfloat32 products\t" in done.stdout
    assert "\ngated_delta_net\tchunkwise\tchunkwise_scalar\tone decay a head or none" in done.stdout
    assert call("rules", "--markdown").stdout == support_table()


def test_rules_by_name() -> None:
    done = call("rules", "--explain", "gla", "mlstm")
    assert done.exit_code == 0, done.output
    firsts = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert (firsts.count("gla"), firsts.count("mlstm"), firsts.count("rwkv6")) == (6, 5, 0)
    assert "\ngla\tchunkwise, in torch.vmap\tchunkwise_plain\t" in done.stdout
    assert "\nmlstm\tchunkwise\tprogram\tseveral calls of engines; chunkwise_scalar (one decay" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["eval", "no/such/folder"], "no/such/folder"),
        (["eval", "CKPT", "--tasks", "linrec_nothing"], "linrec_stdlib_bpb"),
        (["eval", "CKPT", "--metadata", "{"], "--metadata"),
        (["eval", "CKPT", "--metadata", "[1]"], "--metadata"),
        (["generate", "no/such/folder", "--prompt", "x"], "no/such/folder"),
        (["eval", "CKPT", "--metadata", '{"question": 3}'], "question"),
        (["generate", "CKPT"], "--prompt"),
        (["generate", "CKPT", "--prompt", "x", "--top-k", "3"], "--top-k"),
        (["generate", "CKPT", "--prompt", "x", "--top-p", "0.5"], "--temperature"),
        (["rules", "--markdown", "--explain"], "--explain"),
        (["rules", "--markdown", "gla"], "--markdown"),
        (["rules", "gated_delta"], "gated_delta_net"),
        (["bench", "--device", "cuda", "--rounds", "3"], "--rounds"),
        (["bench", "--device", "mps"], "mps"),
        (["generate", "CKPT", "--prompt", "x", "--session", "CKPT/model.safetensors"], "model.safetensors"),
        (["train", "--text", "no/such/file", "--out", "x"], "no/such/file"),
        (["train", "--out", "OUT", "--pattern", "gated_delta"], "gated_delta_net"),
        (["train", "--out", "OUT", "--steps", "0"], "steps"),
        (["train", "--out", "OUT", "--device", "nowhere"], "--device"),
        (["train", "--out", "OUT", "--device", "meta"], "--device"),
        (["train", "--out", "OUT", "--seed", "1" + "0" * 30], "seed"),
        (["train", "--out", "CKPT/model.safetensors"], "model.safetensors"),
        (["train", "--out", "CKPT/model.safetensors/deeper"], "model.safetensors/deeper"),
        (["generate", "CKPT", "--prompt", "x", "--device", "nowhere"], "--device"),
        (["generate", "CKPT", "--prompt", "x", "--seed", "1" + "0" * 30], "seed"),
        (["generate", "CKPT", "--prompt", "x", "--session", "CKPT/config.json/a"], "config.json"),
        (["eval", "CKPT", "--device", "nowhere"], "--device"),
        (["eval", "CKPT", "--out", "."], "expected the name of a file"),
        (["eval", "CKPT", "--out", "CKPT/config.json/report"], "config.json"),
        (["compare-hf", "CKPT", "--out", ".."], "expected the name of a file"),
        (["suite", "parity", "--out", "CKPT/config.json"], "config.json"),
        (["compare", "--out", "CKPT/config.json"], "config.json"),
        (["bench", "--quick", "--out", "CKPT/config.json"], "config.json"),
        (["demo", "--out", "CKPT/config.json"], "config.json"),
        (["demo", "--out", "OUT", "--prompt", ""], "prompt"),
        (["generate", "CKPT", "--prompt", "x", "--prompt-file", "TEXTS/part0.txt"], "--prompt-file"),
    ],
)
def test_typed_errors_are_one_line(
    arguments: list[str], says: str, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    places = {"CKPT": str(checkpoint), "OUT": str(tmp_path / "out"), "TEXTS": str(texts)}
    filled = [re.sub("CKPT|OUT|TEXTS", lambda found: places[found[0]], a) for a in arguments]
    done = call(*filled)
    assert done.exit_code == 1
    assert done.stderr.startswith("linrec: error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert not (tmp_path / "out").exists()
    assert isinstance(call("--debug", *filled).exception, LinrecError)


UNREADABLE = {
    "gone": "no such",
    "folder": "folder",
    "closed": "could not be read (Permission denied)",
    "latin": "expected UTF-8 text",
    "zero": "zero byte at position 1",
    "empty": "found an empty file",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_text_that_cannot_be_read_is_named_with_its_reason(
    name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    (tmp_path / "folder").mkdir()
    for file, content in {"closed": b"x", "latin": b"na\xefve", "zero": b"a\0b", "empty": b""}.items():
        (tmp_path / file).write_bytes(content)
    read = Path.read_bytes

    def refuse(self: Path) -> bytes:  # root may read what the mode forbids
        if self.name == "closed":
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    train = ["train", "--out", str(tmp_path / "out"), "--text", str(path)]
    for arguments in (["generate", str(checkpoint), "--prompt-file", str(path)], train):
        done = call(*arguments)
        assert (
            done.exit_code == 1 and done.stderr.startswith("linrec: error: ") and done.stderr.count("\n") == 1
        )
        assert str(path) in done.stderr and UNREADABLE[name] in done.stderr
        assert not (tmp_path / "out").exists()


def test_a_prompt_is_read_from_a_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("3: \u00fcber\n", encoding="utf-8")
    found = call("generate", checkpoint, "--prompt-file", tmp_path / "prompt.txt", "--max-tokens", "4")
    assert found.exit_code == 0, found.output
    assert (
        found.stdout == call("generate", checkpoint, "--prompt", "3: \u00fcber\n", "--max-tokens", "4").stdout
    )


def test_usage_errors_exit_with_two() -> None:
    assert call("nothing").exit_code == 2
    assert call("train").exit_code == 2
    assert call("eval", "x", "--limit", "0").exit_code == 2


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom linrec.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'lm_eval', 'matplotlib'} & set(sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("rules", "train", "eval", "generate", "demo"))


def test_generation_is_seeded(checkpoint: Path) -> None:
    def sampled(seed: int) -> str:
        options = ("--temperature", "1", "--max-tokens", "24", "--seed", str(seed))
        return call("generate", checkpoint, "--prompt", "1", *options).stdout

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert torch.is_grad_enabled()
