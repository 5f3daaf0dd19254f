"""Tokenizers of files: ids and text as the package gives them, and text that comes id by id."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from linrec.errors import CheckpointError, ConfigError
from linrec.models import (
    ByteTokenizer,
    Config,
    Corpus,
    Document,
    LanguageModel,
    TrainConfig,
    bits_per_byte,
    train,
)
from linrec.models.corpus import token_stream
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


DOCUMENTS = [Document("a", TEXT.encode()), Document("b", b""), Document("c", b"return x" * 9)]


def test_a_stream_of_documents_has_the_ids_that_start_and_end_them(folder: Path) -> None:
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [reference.encode(d.text.decode(), add_special_tokens=False).ids for d in DOCUMENTS]
    tokenizer = load_tokenizer(folder, Config(vocab_size=400))
    assert token_stream(DOCUMENTS, tokenizer).tolist() == [id for t in texts for id in (0, *t, 1)]
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = load_tokenizer(folder, Config(vocab_size=400))  # it starts and ends with one: it stands once
    assert token_stream(DOCUMENTS, tokenizer).tolist() == [1, *(id for t in texts for id in (*t, 1))]
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(folder, Config(vocab_size=400))
    assert token_stream(DOCUMENTS, tokenizer).tolist() == [id for t in texts for id in t]
    with pytest.raises(ConfigError, match="bos_token"):
        bits_per_byte(
            LanguageModel(Config(vocab_size=400, d_model=8, num_heads=1)), DOCUMENTS, tokenizer=tokenizer
        )


@torch.no_grad()
def test_bits_per_byte_counts_bytes_not_tokens(folder: Path) -> None:
    torch.manual_seed(0)
    config = Config(vocab_size=400, d_model=16, num_heads=2, init_std=0.3)
    model, tokenizer = LanguageModel(config).eval(), load_tokenizer(folder, config)
    bits = total = 0.0
    for document in DOCUMENTS:
        ids = torch.tensor([[0, *tokenizer.encode(document.text.decode())]])
        logp = model(ids).logits[:, :-1].log_softmax(-1)
        bits -= logp.gather(2, ids[:, 1:, None]).sum().item() / math.log(2)
        total += len(document.text)
    assert bits_per_byte(model, DOCUMENTS, tokenizer=tokenizer, chunk=7) == pytest.approx(
        bits / total, rel=1e-5
    )


def test_a_model_learns_the_ids_of_its_tokenizer(folder: Path) -> None:
    torch.manual_seed(0)
    config = Config(vocab_size=400, d_model=32, num_heads=2)
    model, tokenizer = LanguageModel(config), load_tokenizer(folder, config)
    corpus = Corpus([Document("c", b"return x  # and so on\n" * 60)], [])
    settings = TrainConfig(steps=30, batch_size=4, seq_len=24, lr=1e-2, warmup=5)
    result = train(model, corpus, settings, tokenizer=tokenizer)
    ids = tokenizer.encode(corpus.train[0].text.decode())
    assert result.tokens_per_byte == pytest.approx(len(ids) / len(corpus.train[0].text))
    assert result.losses[0] == pytest.approx(math.log(400), abs=0.4)
    assert result.losses[-1] < 0.3 * result.losses[0]
    with pytest.raises(ConfigError, match=f"vocab_size >= {tokenizer.vocab_size}"):
        train(
            LanguageModel(Config(vocab_size=64, d_model=8, num_heads=1)),
            corpus,
            settings,
            tokenizer=tokenizer,
        )
