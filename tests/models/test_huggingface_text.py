"""Text through a checkpoint folder alone: ``AutoTokenizer`` and ``pipeline``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linrec import models
from linrec.errors import CheckpointError
from linrec.models.byte_tokenizer import TOKENIZER_FILES

transformers = pytest.importorskip("transformers")
import linrec.models.huggingface  # noqa: E402, F401  (registers the classes)


def byte_model(**changes: Any) -> models.LanguageModel:
    torch.manual_seed(12)
    options: dict[str, Any] = {"eos_token_id": 256, "bos_token_id": 256, "pad_token_id": 256}
    config = models.Config(d_model=16, num_heads=2, init_std=0.3, **{**options, **changes})
    return models.LanguageModel(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    byte_model().save(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_ids_are_bytes_and_come_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text).input_ids
    if "<|end|>" not in text:
        assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_what_is_no_text(tokenizer: Any) -> None:
    assert tokenizer.decode(list("é".encode())[:1]) == "�"
    assert tokenizer.decode([0xFF, 97, 256]) == "�a<|end|>"
    assert tokenizer.decode([97, 256], skip_special_tokens=True) == "a"
    assert tokenizer(" a  b\r\n\t\x00").input_ids == list(b" a  b\r\n\t\x00")
    assert len(tokenizer) == 257
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tokenizer.pad_token_id == 256


def test_batches_are_padded_on_the_left(tokenizer: Any) -> None:
    batch = tokenizer(["a", "bcd"], padding=True, return_tensors="pt")
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert batch["input_ids"].tolist() == [[256, 256, 97], [98, 99, 100]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]


def test_a_pipeline_from_the_folder(folder: Path, tokenizer: Any) -> None:
    model = models.LanguageModel.load(folder)
    pipe = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    for text in ("Ünter uns", "a"):
        ids = torch.tensor([list(text.encode())])
        for _ in range(10):
            following = model(ids).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, following], 1)
            if int(following) == 256:
                break
        expected = tokenizer.decode(ids[0], skip_special_tokens=True)
        assert pipe(text, max_new_tokens=10, do_sample=False)[0]["generated_text"] == expected
    assert isinstance(pipe("", max_new_tokens=3)[0]["generated_text"], str)
    texts = ["Once", "upon a time"]
    one_by_one = [pipe(text, max_new_tokens=5, do_sample=False) for text in texts]
    assert pipe(texts, batch_size=2, max_new_tokens=5, do_sample=False) == one_by_one


def test_generation_ends_at_the_end_token_of_the_folder(tmp_path: Path) -> None:
    model = byte_model()
    with torch.no_grad():
        model.embed.weight[256] = 3 * model.norm.weight  # whatever is read, the end is likely soon
    model.save(tmp_path)
    face = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    settings = face.generation_config
    assert settings.eos_token_id == settings.bos_token_id == settings.pad_token_id == 256
    ids = torch.randint(0, 256, (6, 5))
    out = face.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
    for row in out[:, 5:].tolist():
        if 256 in row:
            assert set(row[row.index(256) :]) == {256}
    assert bool((out[:, 5:] == 256).any())


def test_stop_strings_take_the_tokenizer(tokenizer: Any, folder: Path) -> None:
    face = transformers.AutoModelForCausalLM.from_pretrained(folder)
    given = tokenizer(["ab"], return_tensors="pt")
    expected = face.generate(**given, max_new_tokens=9, do_sample=False)
    places = [i for i, byte in enumerate(expected[0].tolist()) if i >= 2 and 33 <= byte < 127]
    options = {"stop_strings": [chr(int(expected[0, places[0]]))], "tokenizer": tokenizer}
    got = face.generate(**given, max_new_tokens=9, do_sample=False, **options)
    assert torch.equal(got, expected[:, : places[0] + 1])
    drafts = face.generate(**given, max_new_tokens=9, do_sample=False, prompt_lookup_num_tokens=2, **options)
    assert torch.equal(drafts[:, : places[0] + 1], got)


def test_folders_without_tokenizer_files(tmp_path: Path) -> None:
    byte_model(eos_token_id=None, bos_token_id=None, pad_token_id=None).save(tmp_path / "default")
    assert not set(TOKENIZER_FILES) & {path.name for path in (tmp_path / "default").iterdir()}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "default", padding_side="right")
    assert tokenizer("aé").input_ids == [97, 0xC3, 0xA9] and tokenizer.padding_side == "right"
    face = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "default")
    face.save_pretrained(tmp_path / "again")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again")("a").input_ids == [97]
    byte_model(vocab_size=300, eos_token_id=299, bos_token_id=None, pad_token_id=None).save(
        tmp_path / "other"
    )
    with pytest.raises(CheckpointError, match="vocab_size = 257, got 300"):
        transformers.AutoTokenizer.from_pretrained(tmp_path / "other")


def test_a_tokenizer_of_another_model_goes(tmp_path: Path) -> None:
    byte_model().save(tmp_path)
    assert set(TOKENIZER_FILES) <= {path.name for path in tmp_path.iterdir()}
    byte_model(vocab_size=300).save(tmp_path)
    assert not set(TOKENIZER_FILES) & {path.name for path in tmp_path.iterdir()}
    (tmp_path / TOKENIZER_FILES[0]).write_text("{}")  # not ours: somebody's own
    byte_model(vocab_size=300).save(tmp_path)
    assert (tmp_path / TOKENIZER_FILES[0]).read_text() == "{}"


def test_a_tokenizer_of_its_own_stands_first(tmp_path: Path, tokenizer: Any) -> None:
    byte_model(vocab_size=300).save(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("é").input_ids == [0xC3, 0xA9]


@pytest.mark.slow
def test_the_files_need_no_import_of_linrec(folder: Path) -> None:
    code = (
        "import sys; from transformers import AutoTokenizer; "
        f"print(AutoTokenizer.from_pretrained({str(folder)!r})('é').input_ids); assert 'linrec' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[195, 169]"
