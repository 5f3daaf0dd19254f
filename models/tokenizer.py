"""Text to ids and back: the bytes of a model of bytes, or whatever tokenizer lies in a model's folder."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from linrec.errors import CheckpointError
from linrec.models.byte_tokenizer import END, TOKENIZER_FILE, has_byte_vocabulary
from linrec.reading import read_bytes, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Encoder

    from linrec.models.config import Config

OPTIONS_FILE = "tokenizer_config.json"
FILES = (
    *(TOKENIZER_FILE, OPTIONS_FILE, "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"),
)


class Decoder(Protocol):
    """The text of ids that come one by one: a character is given once it is whole."""

    def step(self, token: int) -> str:
        """What this id completes; may be empty."""

    def rest(self) -> str:
        """What is left at the end, with U+FFFD for a character that is not whole."""


class Tokenizer(Protocol):
    """Ids of text, text of ids; special tokens have no text."""

    name: str  # equal for equal tokenizers
    vocab_size: int  # all ids are below
    start: int | None  # stands before a text, or in place of one that is empty
    ends: frozenset[int]  # ids that end a document

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text; with ``special`` as for the start of a document, as the tokenizer's own rules have it."""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ids."""

    def decoder(self) -> Decoder:
        """For ids that come one by one."""

    def files(self) -> dict[str, bytes]:
        """What belongs beside the weights of a model, by name; nothing where the weights' own saving writes it."""


class ByteTokenizer:
    """Ids are the UTF-8 bytes 0..255 of a text; 256 ends a document, and has no text.

    Lone surrogates, which some data hold, pass through; invalid UTF-8 becomes U+FFFD.
    """

    name = "linrec-bytes"
    vocab_size = END + 1
    eos_id = END
    start: int | None = END
    ends = frozenset({END})

    def encode(self, text: str | bytes, special: bool = False) -> list[int]:
        """The bytes; there is nothing special to add."""
        return list(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of those ids that are bytes."""
        return bytes(t for t in tokens if t < END).decode("utf-8", "replace")

    def decoder(self) -> Decoder:
        """For bytes that come one by one."""
        return _ByteDecoder()

    def files(self) -> dict[str, bytes]:
        """None: a checkpoint of a model of bytes gets them by itself."""
        return {}


class _ByteDecoder:
    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token: int) -> str:
        return self._utf8.decode(bytes([token])) if token < END else ""

    def rest(self) -> str:
        return self._utf8.decode(b"", final=True)


class FileTokenizer:
    """A ``tokenizer.json``, read by the package tokenizers, with the special tokens that it or the model names.

    Raises CheckpointError where the package is missing, and for a file that it cannot read or with more ids than
    the model has.
    """

    def __init__(self, folder: Path, config: Config | None = None):
        self.folder = folder
        self._encoder, self.name = _encoder(folder / TOKENIZER_FILE)
        self.vocab_size = size = self._encoder.get_vocab_size(with_added_tokens=True)
        if config is not None and size > config.vocab_size:
            raise CheckpointError(
                f"{folder / TOKENIZER_FILE}: expected at most {config.vocab_size} ids, as the model has, got {size}"
            )
        options = _options(folder)
        self.special = {
            f"{name}_id": self._special(options, name, getattr(config, f"{name}_id", None))
            for name in ("bos_token", "eos_token", "pad_token")
        }
        start, end = self.special["bos_token_id"], self.special["eos_token_id"]
        self.start = end if start is None else start
        self.ends = frozenset() if end is None else frozenset({end})

    def sizes(self) -> dict[str, int | None]:
        """The fields of a :class:`~linrec.models.Config` that it settles; the vocabulary is a multiple of 64, which
        products like."""
        return {"vocab_size": -(-self.vocab_size // 64) * 64, **self.special}

    def files(self) -> dict[str, bytes]:
        """What of its folder belongs to it, by name."""
        return {
            name: read_bytes(self.folder / name, CheckpointError)
            for name in FILES
            if (self.folder / name).is_file()
        }

    def encode(self, text: str, special: bool = False) -> list[int]:
        """See :class:`Tokenizer`."""
        return list(self._encoder.encode(text, add_special_tokens=special).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """See :class:`Tokenizer`."""
        return str(self._encoder.decode(list(tokens), skip_special_tokens=True))

    def decoder(self) -> Decoder:
        """See :class:`Tokenizer`."""
        return _FileDecoder(self)

    def _special(self, options: dict[str, Any], name: str, number: int | None) -> int | None:
        """The id of a special token: by its text in the tokenizer's options, or as the model has it."""
        text = options.get(name)
        text = text.get("content") if isinstance(text, dict) else text
        found = self._encoder.token_to_id(text) if isinstance(text, str) else None
        return number if found is None else int(found)


class _FileDecoder:
    """The text so far is that of all ids since the last whole piece; U+FFFD at its end may still become a character."""

    def __init__(self, tokenizer: FileTokenizer):
        self._tokenizer = tokenizer
        self._before: list[
            int
        ] = []  # ids whose text has been given, kept because the next one's may depend on them
        self._ids: list[int] = []

    def step(self, token: int) -> str:
        self._ids.append(token)
        before, text = self._texts()
        if text.endswith("\ufffd") or len(text) <= len(before):
            return ""
        self._before, self._ids = self._ids, []
        return text[len(before) :]

    def rest(self) -> str:
        before, text = self._texts()
        self._before, self._ids = [], []
        return text[len(before) :]

    def _texts(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        return decode(self._before), decode([*self._before, *self._ids])


def tokenizer_at(path: str | os.PathLike[str]) -> FileTokenizer:
    """The tokenizer of a folder with a ``tokenizer.json``, or of such a file, for a model that is yet to be made.

    Raises CheckpointError where there is none, or it cannot be read.
    """
    path = Path(path)
    folder = path.parent if path.name == TOKENIZER_FILE and path.is_file() else path
    if not (folder / TOKENIZER_FILE).is_file():
        raise CheckpointError(f"{path}: expected a folder with {TOKENIZER_FILE}, or that file, found none")
    return FileTokenizer(folder)


def load_tokenizer(folder: str | os.PathLike[str] | None, config: Config) -> Tokenizer:
    """The tokenizer of a model: bytes where its vocabulary is that, else the ``tokenizer.json`` of its folder.

    Raises CheckpointError where there is neither.
    """
    return ByteTokenizer() if has_byte_vocabulary(config) else file_tokenizer(folder, config)


def file_tokenizer(folder: str | os.PathLike[str] | None, config: Config) -> Tokenizer:
    """The ``tokenizer.json`` of a folder; raises CheckpointError where there is none, or it does not fit the model."""
    if folder is None or not os.path.isfile(Path(folder) / TOKENIZER_FILE):
        where = "a model in memory" if folder is None else str(folder)
        raise CheckpointError(
            f"{where}: expected {TOKENIZER_FILE} for a model of {config.vocab_size} ids, found none (only where "
            f"vocab_size is {END + 1} and eos_token_id {END} are they bytes); transformers' AutoTokenizer writes one "
            "with save_pretrained"
        )
    return FileTokenizer(Path(folder), config)


def _encoder(path: Path) -> tuple[Encoder, str]:
    """The file's tokenizer, and a name that tells it from others."""
    import hashlib

    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise CheckpointError(
            f"{path}: reading it needs the package tokenizers: pip install linrec[hf]"
        ) from error
    content = read_bytes(path, CheckpointError)
    try:
        return Tokenizer.from_str(content.decode("utf-8")), hashlib.sha256(content).hexdigest()[:16]
    # The package raises bare exceptions.
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: not a tokenizer that the package tokenizers reads ({said})"
        ) from error


def _options(folder: Path) -> dict[str, Any]:
    if not (folder / OPTIONS_FILE).is_file():
        return {}
    values = read_json(folder / OPTIONS_FILE, CheckpointError)
    return values if isinstance(values, dict) else {}
