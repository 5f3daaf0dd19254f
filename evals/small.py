"""What ``linrec train``, ``generate`` and ``demo`` share: the byte model's config, and text from a stream."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from linrec.models.config import Config
    from linrec.stream import Session

END = 256


def byte_config(pattern: tuple[str, ...], **options: Any) -> Config:
    """Config of a model over the 256 bytes and an end-of-document token."""
    from linrec.models.config import Config

    return Config(
        vocab_size=257, pattern=pattern, eos_token_id=END, bos_token_id=END, pad_token_id=END, **options
    )


def parameters(model: nn.Module) -> int:
    """Number of trained floats, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def stream_text(session: Session, prompt: str, max_tokens: int, **sampling: Any) -> Iterator[str]:
    """Text of a session's stream, piece by piece; a UTF-8 character is held back until it is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in session.stream(list(prompt.encode("utf-8")), max_tokens, stop=END, **sampling):
        if piece := decoder.decode(bytes([token])):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest
