"""What the commands around small byte models share: their config and size, their state, and text from a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from linrec.errors import ConfigError
from linrec.models.tokenizer import ByteTokenizer, Tokenizer
from linrec.state import state_bytes

if TYPE_CHECKING:
    from torch import nn

    from linrec.models.config import Config
    from linrec.models.language_model import LanguageModel
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


def count_parameters(config: Config) -> int:
    """Parameters of the model of a configuration, which is not allocated."""
    import torch

    from linrec.models.language_model import LanguageModel

    with torch.device("meta"):
        return parameters(LanguageModel(config))


def same_size(
    config: Config, pattern: tuple[str, ...], options: dict[str, dict[str, Any]] | None = None
) -> Config:
    """The config with another pattern of layers and the MLP width that comes closest to its parameter count."""
    target = count_parameters(config)
    # Three matrices of d_model times the width, which is a multiple of 8, in each layer; at least the narrowest.
    eight = 8 * 3 * config.d_model * (config.num_layers or len(config.pattern))
    config = replace(config, pattern=pattern, layer_options=options or {})
    smallest = replace(config, mlp_ratio=8 / config.d_model)
    more = max(0, round((target - count_parameters(smallest)) / eight))
    return replace(config, mlp_ratio=8 * (1 + more) / config.d_model)


def layer_spec(spec: str) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """``layer[+layer]:option=value,...`` as a pattern and layer options, which belong to the last layer.

    Values are JSON, or else text. Raises ConfigError for an option without a value.
    """
    names, _, text = spec.partition(":")
    pattern = tuple(names.split("+"))
    options = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{spec!r}: expected option=value, got {item!r}")
        options[key.strip()] = _value(value.strip())
    return pattern, {pattern[-1]: options} if options else {}


def _value(text: str) -> Any:
    """A JSON value, or the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def state_bytes_after(model: LanguageModel, contexts: Sequence[int]) -> list[int]:
    """Bytes of one row's state after contexts of rising lengths, from the states that the model returns."""
    import torch

    state, done, sizes = None, 0, []
    model.eval()
    with torch.inference_mode():
        for context in contexts:
            tokens = torch.randint(END, (1, context - done), device=model.device)
            state, done = model.prefill(tokens, state, chunk=1024).state, context
            sizes.append(state_bytes(state))
    return sizes


def stream_text(
    session: Session, prompt: str, max_tokens: int, *, tokenizer: Tokenizer | None = None, **sampling: Any
) -> Iterator[str]:
    """Text of a session's stream, piece by piece; a UTF-8 character is held back until it is whole.

    ``tokenizer`` is the model's (default: bytes); a prompt at the start of a session is read with its special tokens.
    """
    tokenizer = tokenizer or ByteTokenizer()
    decoder = tokenizer.decoder()
    ids = tokenizer.encode(prompt, special=not session.started)
    for token in session.stream(ids, max_tokens, stop=tokenizer.ends, **sampling):
        if piece := decoder.step(token):
            yield piece
    if rest := decoder.rest():
        yield rest
