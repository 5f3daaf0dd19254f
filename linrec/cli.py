"""The ``linrec`` command. Everything heavy is imported inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linrec.errors import CheckpointError, ConfigError, LinrecError

if TYPE_CHECKING:
    from linrec.models.config import Config
    from linrec.models.corpus import Corpus

app = typer.Typer(
    name="linrec",
    help="Linear attention and recurrent sequence models: rules, training, streaming, evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Device = Annotated[str | None, typer.Option(help="torch device; default: a GPU where there is one")]
Checkpoint = Annotated[Path, typer.Argument(help="a checkpoint folder", show_default=False)]


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
) -> None:
    """Options before the command apply to all of them."""
    context.find_root().meta["debug"] = debug
    _DEBUG["on"] = debug


_DEBUG = {"on": False}


@app.command()
def rules(
    explain: Annotated[
        bool, typer.Option("--explain", help="also say which backend `auto` chooses here, and why")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="the table as the README holds it")] = False,
) -> None:
    """Print the support table: every rule, its equation, engine, forms and state."""
    from linrec import table

    if markdown:
        typer.echo(table.support_table())
    else:
        table.print_table(explain=explain)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="folder for the checkpoint", show_default=False)],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="a text file or folder, repeatable; default: Python's standard library"),
    ] = None,
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
    if (out / "config.json").exists() and not force:
        raise CheckpointError(f"{out} already holds a checkpoint; choose another --out or add --force")
    corpus = _corpus(text)
    from linrec.models.training import TrainConfig

    settings = TrainConfig(steps=steps, batch_size=batch_size, seq_len=seq_len, lr=lr, seed=seed)
    config = _config(pattern, layers=layers, d_model=d_model, heads=heads)
    _train(config, corpus, settings, out, device)


def _corpus(text: list[Path] | None) -> Corpus:
    from linrec.models.corpus import standard_library, text_files

    if not text:
        return standard_library()
    missing = [str(path) for path in text if not path.exists()]
    if missing:
        raise ConfigError(f"--text expects files or folders that exist, got {', '.join(missing)}")
    return text_files(text)


def _config(pattern: str, *, layers: int | None, d_model: int, heads: int) -> Config:
    from linrec.evals.demo import byte_config

    names = tuple(name.strip() for name in pattern.split(",") if name.strip())
    return byte_config(names, num_layers=layers, d_model=d_model, num_heads=heads)


def _train(config: Config, corpus: Corpus, settings: Any, out: Path, device: str | None) -> None:
    import torch
    from rich.console import Console

    from linrec.evals.demo import parameters, train_with_bar
    from linrec.evals.run import versions, write_json
    from linrec.models.language_model import LanguageModel
    from linrec.models.training import bits_per_byte

    console = Console()
    torch.manual_seed(settings.seed)
    model = LanguageModel(config).to(_device(device))
    size = sum(len(document.text) for document in corpus.train)
    console.print(f"{parameters(model):,} parameters, {len(corpus.train)} files, {size / 1e6:.1f} MB")
    result = train_with_bar(model, corpus, settings, "training", console)
    model.save(out)
    report = {
        "losses": result.losses,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "versions": versions(),
    }
    if corpus.held_out:
        report["held_out_bits_per_byte"] = bits_per_byte(model, corpus.held_out[:20])
        console.print(f"held-out files (first 20): {report['held_out_bits_per_byte']:.3f} bits per byte")
    else:
        console.print("no file was held out: there are too few to split by the hash of their path")
    write_json(out / "training.json", report)
    console.print(f"saved {out}  ({result.tokens_per_second:,.0f} bytes/s)")


@app.command(name="eval")
def evaluate(
    checkpoint: Checkpoint,
    tasks: Annotated[
        str, typer.Option(help="comma-separated; the kit's own or any stock lm-eval task")
    ] = "linrec_stdlib_bpb,linrec_stdlib_choice",
    limit: Annotated[int | None, typer.Option(min=1, help="documents of each task")] = None,
    out: Annotated[Path | None, typer.Option(help="write the report here (JSON)")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="examples before each question")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="contexts side by side")] = None,
    rolling_window: Annotated[
        int | None, typer.Option(min=2, help="score documents in half-overlapping windows of this size")
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(help="JSON object for the tasks, as lm-eval's --metadata")
    ] = None,
    device: Device = None,
) -> None:
    """Evaluate a checkpoint through lm-eval."""
    import json

    from rich.console import Console

    from linrec.evals.run import evaluate as run
    from linrec.evals.run import results_table

    try:
        extra = json.loads(metadata) if metadata else None
    except json.JSONDecodeError as error:
        raise ConfigError(f"--metadata expects a JSON object, got {metadata!r} ({error})") from error
    report = run(
        checkpoint,
        [tasks],
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        rolling_window=rolling_window,
        metadata=extra,
        device=_device(device),
        out=out,
    )
    console = Console()
    console.print(results_table(report))
    if out is not None:
        console.print(f"wrote {out}")


@app.command()
def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Option(help="text to continue")] = "",
    max_tokens: Annotated[int, typer.Option(min=0, help="bytes to generate")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
    session: Annotated[
        Path | None,
        typer.Option(help="restore the stream from this file if it exists, and save it there at the end"),
    ] = None,
    device: Device = None,
) -> None:
    """Stream a continuation in recurrent mode."""
    from linrec.evals.demo import stream_text
    from linrec.models.language_model import LanguageModel
    from linrec.stream import Session

    model = LanguageModel.load(checkpoint, device=_device(device)).eval()
    restored = session is not None and session.exists()
    stream = Session.restore(model, session) if restored else Session(model)
    if not prompt and not restored:
        raise ConfigError("expected --prompt, or --session with a file to continue")
    sys.stdout.write(prompt)
    for piece in stream_text(
        stream, prompt, max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    ):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if session is not None:
        stream.save(session)
        typer.echo(f"saved the stream in {session}", err=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the checkpoints, metrics and picture")] = Path(
        "runs/demo"
    ),
    steps: Annotated[int | None, typer.Option(min=1, help="training steps of each model")] = None,
    minutes: Annotated[
        float,
        typer.Option(min=0.1, help="on a slow machine, cut the steps of both models to end by about then"),
    ] = 5.0,
    prompt: Annotated[str, typer.Option(help="text to continue")] = "def ",
) -> None:
    """Train, stream and evaluate a small hybrid on Python's standard library, beside softmax attention."""
    from linrec.evals.demo import STEPS, run_demo

    run_demo(out, steps=steps or STEPS, minutes=minutes, prompt=prompt)


def _device(name: str | None) -> str:
    import torch

    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Entry point: a typed error is one line on stderr and exit code 1; ``--debug`` shows its traceback."""
    try:
        app()
    except LinrecError as error:
        if _DEBUG["on"]:
            raise
        message = " ".join(str(error).split())
        print(f"linrec: error: {message}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
