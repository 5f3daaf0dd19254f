"""What RULER's tasks ask for besides a model: a tokenizer to measure their prompts with, made here.

RULER sizes a prompt in tokens (Hsieh et al. 2024, arXiv:2404.06654), and its lengths mean subwords of four or
five characters: counted in bytes, 512 leave no room for hay beside the needle. So lengths are counted in words,
punctuation and digits, unless the metadata ask for ``"tokenizer": "bytes"`` or name another tokenizer.
"""

from __future__ import annotations

import atexit
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OWN = ("words", "bytes")


def with_tokenizer(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata with ``tokenizer`` the name of one that can be loaded without a network."""
    name = metadata.get("tokenizer", "words")
    return {**metadata, "tokenizer": tokenizer_folder(name) if name in OWN else name}


@cache
def tokenizer_folder(name: str) -> str:
    """A folder that holds the tokenizer "words" or "bytes" until the process ends."""
    from linrec.models.byte_tokenizer import byte_tokenizer

    folder = tempfile.mkdtemp(prefix=f"linrec-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (word_tokenizer() if name == "words" else byte_tokenizer()).save_pretrained(folder)
    return folder


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word, run of punctuation or digit. It counts; what the token is, it does not tell."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"word": 0}, unk_token="word"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), digits])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="word")


@contextmanager
def impatient(seconds: float = 20.0) -> Iterator[None]:
    """Give up on connections after a while: nltk looks for rules, which needles do not use, with no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
