"""``linrec train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from linrec.cli.options import Device, device_named, names
from linrec.errors import CheckpointError

if TYPE_CHECKING:
    from linrec.models.config import Config
    from linrec.models.corpus import Corpus
    from linrec.models.language_model import LanguageModel
    from linrec.models.training import TrainConfig, TrainResult

FILES = 20  # held-out ones that are scored
Texts = Annotated[
    list[Path] | None,
    typer.Option(help="a text file or folder, repeatable; default: Python's standard library"),
]


def command(
    out: Annotated[Path, typer.Option(help="folder for the checkpoint", show_default=False)],
    text: Texts = None,
    pattern: Annotated[
        str, typer.Option(help="layer names, comma-separated, cycled over the layers")
    ] = "gated_delta_net,gated_delta_net,softmax_attention,gated_delta_net",
    layers: Annotated[int | None, typer.Option(help="layers; default: once through the pattern")] = None,
    d_model: Annotated[int, typer.Option(help="width")] = 128,
    heads: Annotated[int, typer.Option(help="heads")] = 4,
    steps: Annotated[int, typer.Option(help="optimiser steps")] = 1000,
    batch_size: Annotated[int, typer.Option(help="sequences a step")] = 16,
    seq_len: Annotated[int, typer.Option(help="bytes a sequence")] = 256,
    lr: Annotated[float, typer.Option(help="peak learning rate")] = 3e-3,
    seed: Annotated[int, typer.Option(help="of the weights and of the batches")] = 0,
    device: Device = None,
    force: Annotated[bool, typer.Option("--force", help="replace a checkpoint that is in --out")] = False,
) -> None:
    """Train a byte-level language model on your own files and save it (safetensors)."""
    if os.path.exists(out / "config.json") and not force:
        raise CheckpointError(f"{out} already holds a checkpoint; choose another --out or add --force")
    from linrec.evals.small import byte_config
    from linrec.models.corpus import standard_library, text_files
    from linrec.models.training import TrainConfig

    corpus = text_files(text) if text else standard_library()
    settings = TrainConfig(steps=steps, batch_size=batch_size, seq_len=seq_len, lr=lr, seed=seed)
    config = byte_config(names(pattern), num_layers=layers, d_model=d_model, num_heads=heads)
    _train(config, corpus, settings, out, device_named(device))


def _train(config: Config, corpus: Corpus, settings: TrainConfig, out: Path, device: str) -> None:
    import torch

    from linrec.evals.small import parameters
    from linrec.files import check_writable
    from linrec.models.language_model import LanguageModel
    from linrec.models.training import train
    from linrec.terminal import console

    say = console().print
    torch.manual_seed(settings.seed)
    model = LanguageModel(config).to(device)
    check_writable(out)
    size = sum(len(document.text) for document in corpus.train)
    say(f"{parameters(model):,} parameters, {len(corpus.train)} files, {size / 1e6:.1f} MB")
    result = train(model, corpus, settings, progress=True)
    model.save(out)
    held_out = _held_out(model, corpus)
    say(
        f"held-out files (first {FILES}): {held_out:.3f} bits per byte"
        if held_out is not None
        else "no file was held out: there are too few to split by the hash of their path"
    )
    _record(result, held_out, out / "training.json")
    say(f"saved {out}  ({result.tokens_per_second:,.0f} bytes/s)")


def _held_out(model: LanguageModel, corpus: Corpus) -> float | None:
    """Bits per byte of the first held-out files."""
    from linrec.models.training import bits_per_byte

    return bits_per_byte(model, corpus.held_out[:FILES]) if corpus.held_out else None


def _record(result: TrainResult, held_out: float | None, path: Path) -> None:
    from linrec.evals.records import versions, write_json

    report = {
        "losses": result.losses,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "versions": versions(),
    }
    write_json(path, report | ({} if held_out is None else {"held_out_bits_per_byte": held_out}))
