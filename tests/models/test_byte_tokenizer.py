"""The byte tokenizer: ids are bytes, whatever the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from linrec.models.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_ids_are_the_bytes_of_the_text(text: str) -> None:
    ids = TOKENIZER(text).input_ids
    if "<|end|>" not in text:
        assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_every_byte_and_the_end_token(tmp_path: Path) -> None:
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(257))
    assert TOKENIZER.eos_token_id == TOKENIZER.pad_token_id == 256
    assert TOKENIZER("a<|end|>é").input_ids == [97, 256, 0xC3, 0xA9]
    assert TOKENIZER.decode([97, 256], skip_special_tokens=True) == "a"
    TOKENIZER.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path)("x é\n").input_ids == list("x é\n".encode())
