"""Tokenizers of files: ids and text as the package gives them, and text that comes id by id."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from linrec.errors import CheckpointError
from linrec.models import ByteTokenizer, Config
from linrec.models.tokenizer import load_tokenizer

TEXT = "def f(x):\n    return x  # größer, 漢字, emoji 👩‍🔬 and  spaces"


def byte_level(folder: Path) -> Tokenizer:
    """Tokens are pieces of UTF-8: characters come in parts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special)
    tokenizer.train_from_iterator([TEXT.split("#")[0]] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def word_pieces(folder: Path) -> Tokenizer:
    """Spaces are part of the words that follow, and the first one is left out."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<s>", "</s>", "<unk>"])
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


@pytest.fixture(params=[byte_level, word_pieces])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(tmp_path).save(str(tmp_path / "tokenizer.json"))
    options = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    return tmp_path


def test_ids_and_text_are_those_of_the_package(folder: Path) -> None:
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = load_tokenizer(folder, Config(vocab_size=400))
    for text in ("", "x", TEXT, " lead", "tail "):
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, special=True) == reference.encode(text).ids
        assert ours.decode(ours.encode(text)) == reference.decode(reference.encode(text).ids)
    assert (ours.start, ours.ends) == (0, frozenset({1}))


def test_text_that_comes_id_by_id_is_the_text(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, Config(vocab_size=400))
    ids = [0, *tokenizer.encode(TEXT), 1, *tokenizer.encode(TEXT)]
    decoder = tokenizer.decoder()
    pieces = [decoder.step(token) for token in ids]
    assert "".join(pieces) + decoder.rest() == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(map(bool, pieces)) > 20


def test_a_character_that_is_never_whole_is_marked_at_the_end() -> None:
    for tokenizer in (ByteTokenizer(),):
        decoder = tokenizer.decoder()
        ids = list("aé".encode())[:-1]
        assert [decoder.step(t) for t in ids] == ["a", ""]
        assert decoder.rest() == "\ufffd"


def test_bytes_are_the_default_of_models_of_bytes(folder: Path) -> None:
    config = Config(vocab_size=257, bos_token_id=256, eos_token_id=256, pad_token_id=256)
    for place in (folder, None):
        tokenizer = load_tokenizer(place, config)
        assert tokenizer.encode("é") == [195, 169] and tokenizer.ends == {256}


def test_what_is_missing_or_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*at most 20 ids"):
        load_tokenizer(folder, Config(vocab_size=20))
    with pytest.raises(CheckpointError, match="a model in memory"):
        load_tokenizer(None, Config(vocab_size=20))
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        load_tokenizer(folder, Config(vocab_size=400))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="AutoTokenizer"):
        load_tokenizer(folder, Config(vocab_size=400))
