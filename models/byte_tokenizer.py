"""The byte tokenizer as a transformers one, for tools that ask for it: token i is byte i."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linrec.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from linrec.models.config import Config

END_TEXT = "<|end|>"
END = 256
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer_config.json")


def byte_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """256 bytes and the end-of-document token 256, written ``<|end|>``; padding is that token too, on the left.

    Encodes and decodes any text as its UTF-8 bytes, adds no special token by itself, and has
    ``save_pretrained`` for a checkpoint folder. ``options`` as for ``AutoTokenizer.from_pretrained``.
    """
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        for name, text in tokenizer_files().items():
            write_text(Path(folder) / name, text)
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder, **options)
    tokenizer.name_or_path = ""
    return tokenizer


def has_byte_vocabulary(config: Config) -> bool:
    """Whether a model's ids are these: its vocabulary has the size, and its end token is this one."""
    others = (config.bos_token_id, config.pad_token_id)
    return config.vocab_size == END + 1 and config.eos_token_id == END and set(others) <= {None, END}


def tokenizer_files() -> dict[str, str]:
    """The files of a checkpoint folder that ``AutoTokenizer`` reads; written here without its library.

    They are a byte-level BPE without merges.
    """
    vocabulary = {character: byte for byte, character in enumerate(_characters())}
    end = {"id": END, "content": END_TEXT, "single_word": False, "lstrip": False, "rstrip": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**end, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_TEXT,
        "eos_token": END_TEXT,
        "pad_token": END_TEXT,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    texts = (json.dumps(tokenizer, indent=1, ensure_ascii=False), json.dumps(options, indent=2))
    return {name: text + "\n" for name, text in zip(TOKENIZER_FILES, texts, strict=True)}


def _characters() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte: itself, or one past 255."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]
