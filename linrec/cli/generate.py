"""``linrec generate``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linrec.cli.options import Checkpoint, Device, device_named
from linrec.errors import ConfigError

if TYPE_CHECKING:
    from linrec.models.tokenizer import Tokenizer
    from linrec.stream import Session
    from linrec.stream_model import StreamModel

TopK = Annotated[int | None, typer.Option(min=1, help="sample among the k likeliest")]
TopP = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="sample among the likeliest of this probability")
]
PromptFile = Annotated[Path | None, typer.Option(help="a file of UTF-8 text to continue")]
SessionFile = Annotated[
    Path | None,
    typer.Option(help="restore the stream from this file if it exists, and save it there at the end"),
]


def command(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Option(help="text to continue")] = "",
    prompt_file: PromptFile = None,
    max_tokens: Annotated[int, typer.Option(min=0, help="tokens to generate")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy")] = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Annotated[int, typer.Option(help="of the sampling; a restored stream has its own")] = 0,
    session: SessionFile = None,
    device: Device = None,
) -> None:
    """Stream a continuation in recurrent mode."""
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise ConfigError(
            "--top-k and --top-p choose among samples; expected a --temperature above 0 beside them"
        )
    from linrec.evals.harness.any_model import load_any
    from linrec.models.tokenizer import load_tokenizer

    prompt = _prompt(prompt, prompt_file)
    model = load_any(checkpoint, device_named(device))
    stream = _stream(model, seed, session, needs_prompt=not prompt)
    tokenizer = load_tokenizer(checkpoint, model.config)
    _print(stream, prompt, max_tokens, tokenizer, temperature=temperature, top_k=top_k, top_p=top_p)
    if session is not None:
        stream.save(session)
        typer.echo(f"saved the stream in {session}", err=True)


def _prompt(prompt: str, file: Path | None) -> str:
    from linrec.reading import read_text

    if file is None:
        return prompt
    if prompt:
        raise ConfigError("--prompt and --prompt-file are both what to continue; expected one of the two")
    return read_text(file, ConfigError).decode("utf-8")


def _stream(model: StreamModel, seed: int, session: Path | None, *, needs_prompt: bool) -> Session:
    """A new session, or the one on file."""
    from linrec.files import check_writable
    from linrec.stream import Session

    if session is not None:
        check_writable(session.parent)
    stream = Session(model, seed=seed)
    if session is not None and os.path.exists(session):
        return stream.restore(session)
    if needs_prompt:
        raise ConfigError("expected --prompt or --prompt-file, or --session with a file to continue")
    return stream


def _print(stream: Session, prompt: str, max_tokens: int, tokenizer: Tokenizer, **sampling: Any) -> None:
    from linrec.evals.small import stream_text

    sys.stdout.write(prompt)
    for piece in stream_text(stream, prompt, max_tokens, tokenizer=tokenizer, **sampling):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
