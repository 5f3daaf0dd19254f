"""``linrec train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linrec.cli.options import Device, device_named, names
from linrec.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from linrec.models.corpus import Corpus
    from linrec.models.language_model import LanguageModel
    from linrec.models.tokenizer import Tokenizer
    from linrec.models.training import TrainConfig, TrainResult

FILES = 20  # held-out ones that are scored
Texts = Annotated[
    list[Path] | None,
    typer.Option(help="a text file or folder, repeatable; default: Python's standard library"),
]


Init = Annotated[
    Path | None,
    typer.Option(help="a model to go on from, with its tokenizer, in any format that linrec reads"),
]
Tokenised = Annotated[
    Path | None,
    typer.Option("--tokenizer", help="a folder with tokenizer.json for a new model; default: bytes"),
]
SHAPE = ("pattern", "layers", "d_model", "heads", "tokenizer")  # what --init has already


def command(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="folder for the checkpoint", show_default=False)],
    text: Texts = None,
    init: Init = None,
    tokenizer: Tokenised = None,
    pattern: Annotated[
        str, typer.Option(help="layer names, comma-separated, cycled over the layers")
    ] = "gated_delta_net,gated_delta_net,softmax_attention,gated_delta_net",
    layers: Annotated[int | None, typer.Option(help="layers; default: once through the pattern")] = None,
    d_model: Annotated[int, typer.Option(help="width")] = 128,
    heads: Annotated[int, typer.Option(help="heads")] = 4,
    steps: Annotated[int, typer.Option(help="optimiser steps")] = 1000,
    batch_size: Annotated[int, typer.Option(help="sequences a step")] = 16,
    seq_len: Annotated[int, typer.Option(help="tokens a sequence")] = 256,
    lr: Annotated[float, typer.Option(help="peak learning rate")] = 3e-3,
    seed: Annotated[int, typer.Option(help="of the weights and of the batches")] = 0,
    device: Device = None,
    force: Annotated[bool, typer.Option("--force", help="replace a checkpoint that is in --out")] = False,
) -> None:
    """Train a language model on your own files and save it (safetensors): of bytes, of a tokenizer's ids, or one that
    there is already."""
    _check(context, out, init, force)
    from linrec.models.corpus import standard_library, text_files
    from linrec.models.training import TrainConfig

    corpus = text_files(text) if text else standard_library()
    settings = TrainConfig(steps=steps, batch_size=batch_size, seq_len=seq_len, lr=lr, seed=seed)
    shape = {"num_layers": layers, "d_model": d_model, "num_heads": heads}
    model, words = _seeded(seed, init, tokenizer, names(pattern), shape)
    _train(model.to(device_named(device)), words, corpus, settings, out)


def _check(context: typer.Context, out: Path, init: Path | None, force: bool) -> None:
    if os.path.exists(out / "config.json") and not force:
        raise CheckpointError(f"{out} already holds a checkpoint; choose another --out or add --force")
    given = [name for name in SHAPE if _is_given(context, name)]
    if init is not None and given:
        raise ConfigError(
            f"--init has a shape and a tokenizer of its own; leave out --{given[0].replace('_', '-')}"
        )


def _seeded(
    seed: int, init: Path | None, tokenizer: Path | None, pattern: tuple[str, ...], shape: dict[str, Any]
) -> tuple[LanguageModel, Tokenizer]:
    import torch

    torch.manual_seed(seed)
    return _new(tokenizer, pattern, shape) if init is None else _loaded(init)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _loaded(folder: Path) -> tuple[LanguageModel, Tokenizer]:
    from linrec.models.language_model import LanguageModel
    from linrec.models.tokenizer import load_tokenizer

    model = LanguageModel.load(folder)
    return model, load_tokenizer(folder, model.config)


def _new(
    tokenizer: Path | None, pattern: tuple[str, ...], shape: dict[str, Any]
) -> tuple[LanguageModel, Tokenizer]:
    from linrec.evals.small import byte_config
    from linrec.models.config import Config
    from linrec.models.language_model import LanguageModel
    from linrec.models.tokenizer import ByteTokenizer, tokenizer_at

    if tokenizer is None:
        return LanguageModel(byte_config(pattern, **shape)), ByteTokenizer()
    words = tokenizer_at(tokenizer)
    return LanguageModel(Config.from_dict({"pattern": pattern, **words.sizes(), **shape})), words


def _train(
    model: LanguageModel, tokenizer: Tokenizer, corpus: Corpus, settings: TrainConfig, out: Path
) -> None:
    from linrec.evals.small import parameters
    from linrec.files import check_writable
    from linrec.models.training import train
    from linrec.terminal import console

    say = console().print
    check_writable(out)
    size = sum(len(document.text) for document in corpus.train)
    say(f"{parameters(model):,} parameters, {len(corpus.train)} files, {size / 1e6:.1f} MB")
    result = train(model, corpus, settings, tokenizer=tokenizer, progress=True)
    model.save(out, tokenizer.files())
    held_out = _held_out(model, tokenizer, corpus)
    say(
        f"held-out files (first {FILES}): {held_out:.3f} bits per byte"
        if held_out is not None
        else "bits per byte were not measured: no file was held out, or the tokenizer names no token to start with"
    )
    _record(result, held_out, out / "training.json")
    say(f"saved {out}  ({result.tokens_per_second:,.0f} tokens/s)")


def _held_out(model: LanguageModel, tokenizer: Tokenizer, corpus: Corpus) -> float | None:
    """Bits per byte of the first held-out files."""
    from linrec.models.measuring import bits_per_byte

    if not corpus.held_out or tokenizer.start is None:
        return None
    return bits_per_byte(model, corpus.held_out[:FILES], tokenizer=tokenizer)


def _record(result: TrainResult, held_out: float | None, path: Path) -> None:
    from linrec.evals.records import versions, write_json

    report = {
        "losses": result.losses,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "versions": versions(),
    }
    write_json(path, report | ({} if held_out is None else {"held_out_bits_per_byte": held_out}))
