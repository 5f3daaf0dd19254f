"""The byte tokenizer as a transformers one, for tools that ask for it: token i is byte i."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_TEXT = "<|end|>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes and the end-of-document token 256, written ``<|end|>``; padding is that token too.

    Encodes and decodes any text as its UTF-8 bytes, adds no special token by itself, and has
    ``save_pretrained`` for a checkpoint folder.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: byte for byte, character in enumerate(_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_TEXT,
        bos_token=END_TEXT,
        pad_token=END_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _characters() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte: itself, or one past 255."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]
