"""The ``linrec`` command. Everything heavy is imported inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from linrec.errors import CheckpointError, ConfigError, LinrecError

if TYPE_CHECKING:
    from linrec.models.config import Config
    from linrec.models.corpus import Corpus


class Commands(TyperGroup):
    """The commands; a typed error becomes one line on stderr and exit code 1, unless ``--debug`` is on."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LinrecError as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"linrec: error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    name="linrec",
    cls=Commands,
    help="Linear attention and recurrent sequence models: rules, training, streaming, evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Device = Annotated[str | None, typer.Option(help="torch device; default: a GPU where there is one")]
Metadata = Annotated[str | None, typer.Option(help="JSON object for the tasks, as lm-eval's --metadata")]
Checkpoint = Annotated[Path, typer.Argument(help="a checkpoint folder", show_default=False)]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
) -> None:
    """Options before the command apply to all of them."""


@app.command()
def rules(
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="also say which backend `auto` chooses here, and which torch calls are fastest on this CPU",
        ),
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="the table as the README holds it")] = False,
) -> None:
    """Print the support table: every rule, its equation, engine, forms and state."""
    from linrec import table

    if markdown and explain:
        raise ConfigError(
            "--explain is not part of the table that --markdown prints; expected one of the two"
        )
    if markdown:
        typer.echo(table.support_table(), nl=False)
    else:
        _print_rules(table.COLUMNS, table.rows(), table.explanation(_device(None)) if explain else [])
        if explain:
            from linrec.evals.bench.choices import choice_table

            _print_choices(choice_table())


def _print_rules(
    columns: Sequence[str], rows: list[tuple[str, ...]], explained: list[tuple[str, str]]
) -> None:
    """A panel a rule: the equations are too wide for a table in a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    chosen, console = dict(explained), Console()
    for row in rows:
        fields = dict(zip(columns, row, strict=True))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        console.print(Text(fields.pop("rule"), style="bold"))
        for name, value in fields.items():
            table.add_row(f"  {name}", Text(value))
        if row[0] in chosen:
            table.add_row("  backend=auto", Text(chosen[row[0]]))
        console.print(table)


def _print_choices(chosen: list[tuple[str, str]]) -> None:
    """A line a choice between torch calls."""
    typer.echo("chosen by time on this processor")
    for what, call in chosen:
        typer.echo(f"    {what}: {call}")


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
    if os.path.exists(out / "config.json") and not force:
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
    missing = [str(path) for path in text if not os.path.exists(path)]
    if missing:
        raise ConfigError(f"--text expects files or folders that exist, got {', '.join(missing)}")
    return text_files(text)


def _config(pattern: str, *, layers: int | None, d_model: int, heads: int) -> Config:
    from linrec.evals.small import byte_config

    names = tuple(name.strip() for name in pattern.split(",") if name.strip())
    return byte_config(names, num_layers=layers, d_model=d_model, num_heads=heads)


def _train(config: Config, corpus: Corpus, settings: Any, out: Path, device: str | None) -> None:
    import torch
    from rich.console import Console

    from linrec.evals.records import versions, write_json
    from linrec.evals.small import parameters
    from linrec.files import check_writable
    from linrec.models.language_model import LanguageModel
    from linrec.models.training import bits_per_byte, train

    console = Console()
    torch.manual_seed(settings.seed)
    model = LanguageModel(config).to(_device(device))
    check_writable(out)
    size = sum(len(document.text) for document in corpus.train)
    console.print(f"{parameters(model):,} parameters, {len(corpus.train)} files, {size / 1e6:.1f} MB")
    result = train(model, corpus, settings, progress=True)
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
    out: Annotated[Path | None, typer.Option(help="write the report here (JSON, and HTML beside it)")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="examples before each question")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="contexts side by side")] = None,
    rolling_window: Annotated[
        int | None, typer.Option(min=2, help="score documents in half-overlapping windows of this size")
    ] = None,
    max_state_mb: Annotated[
        int, typer.Option(min=0, help="megabytes of states kept for forking; over it they are computed again")
    ] = 1000,
    metadata: Metadata = None,
    device: Device = None,
) -> None:
    """Evaluate a checkpoint through lm-eval."""
    from rich.console import Console

    from linrec.evals.harness.run import evaluate as run
    from linrec.evals.harness.scores import results_table
    from linrec.evals.pages.report import report_files

    report = run(
        checkpoint,
        [tasks],
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        rolling_window=rolling_window,
        max_state_bytes=max_state_mb * 10**6,
        metadata=_json_object(metadata),
        device=_device(device),
        out=out,
    )
    console = Console()
    console.print(results_table(report))
    if files := report_files(out):
        console.print(f"wrote {files[0]} and {files[1]}")


def _json_object(text: str | None) -> dict[str, Any]:
    import json

    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--metadata expects a JSON object, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"--metadata expects a JSON object, got {text!r}")
    return value


@app.command(name="compare-hf")
def compare_hf(
    checkpoint: Checkpoint,
    tasks: Annotated[str, typer.Option(help="comma-separated")] = "linrec_stdlib_choice",
    shots: Annotated[str, typer.Option(help="examples before each question, comma-separated")] = "0,5",
    limit: Annotated[int, typer.Option(min=1, help="documents of each task")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="of both wrappers")] = 8,
    turns: Annotated[int, typer.Option(min=1, help="measure this often and keep the fastest")] = 1,
    metadata: Metadata = None,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="write the report here (JSON and HTML)")] = None,
) -> None:
    """Measure the model class beside lm-eval's own Hugging Face wrapper, on the same weights."""
    from rich.console import Console
    from rich.table import Table

    from linrec.evals.harness.side_by_side import COLUMNS, side_by_side, side_by_side_rows
    from linrec.evals.pages.report import cell_text, report_files

    if not all(part.strip().isdigit() for part in shots.split(",")):
        raise ConfigError(f"--shots expects numbers, comma-separated, got {shots!r}")
    report = side_by_side(
        checkpoint,
        [tasks],
        shots=[int(part) for part in shots.split(",")],
        limit=limit,
        batch_size=batch_size,
        turns=turns,
        metadata=_json_object(metadata),
        device=_device(device),
        out=out,
    )
    console = Console()
    rows = side_by_side_rows(report)
    for start in range(
        0, len(rows), 2
    ):  # a column a run, and few beside each other: all figures fit a terminal
        table = Table(show_header=False)
        for line in zip(COLUMNS, *rows[start : start + 2], strict=True):
            table.add_row(*map(cell_text, line))
        console.print(table)
    if files := report_files(out):
        console.print(f"wrote {files[0]} and {files[1]}")


@app.command()
def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Option(help="text to continue")] = "",
    max_tokens: Annotated[int, typer.Option(min=0, help="bytes to generate")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="sample among the k likeliest")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="sample among the likeliest of this probability")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the sampling; a restored stream has its own")] = 0,
    session: Annotated[
        Path | None,
        typer.Option(help="restore the stream from this file if it exists, and save it there at the end"),
    ] = None,
    device: Device = None,
) -> None:
    """Stream a continuation in recurrent mode."""
    from linrec.evals.small import stream_text
    from linrec.files import check_writable
    from linrec.models.language_model import LanguageModel
    from linrec.stream import Session

    if temperature == 0 and (top_k is not None or top_p is not None):
        raise ConfigError(
            "--top-k and --top-p choose among samples; expected a --temperature above 0 beside them"
        )
    if session is not None:
        check_writable(session.parent)
    model = LanguageModel.load(checkpoint, device=_device(device)).eval()
    restored = session is not None and os.path.exists(session)
    stream = Session(model, seed=seed)
    if restored and session is not None:
        stream.restore(session)
    if not prompt and not restored:
        raise ConfigError("expected --prompt, or --session with a file to continue")
    sys.stdout.write(prompt)
    for piece in stream_text(stream, prompt, max_tokens, temperature=temperature, top_k=top_k, top_p=top_p):
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
    ] = 4.5,
    prompt: Annotated[str, typer.Option(help="text to continue")] = "def ",
) -> None:
    """Train, stream and evaluate a small hybrid on Python's standard library, beside softmax attention."""
    # Torch's threads wait for each other by spinning; on a machine with other work that costs several times
    # what it saves. It is read when torch is loaded, and the user's own setting wins.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from linrec.evals.demo import STEPS, run_demo

    run_demo(out, steps=steps or STEPS, minutes=minutes, prompt=prompt)


@app.command()
def bench(
    cases: Annotated[str, typer.Option(help="comma-separated; default: all")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="small shapes, in seconds")] = False,
    rounds: Annotated[
        int | None,
        typer.Option(min=2, help="times each is run, the best counts; default: 5, forms and curves fewer"),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="torch threads")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for bench.json and the pictures")] = None,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: the kernels beside fla-core's, cases are rules")
    ] = "cpu",
) -> None:
    """Time the rules against transformers and softmax attention, after checking that the results agree."""
    from rich.console import Console

    from linrec.evals.bench.forms import form_table
    from linrec.evals.bench.run import remarks, run_bench, table, write
    from linrec.files import check_writable

    console = Console()
    names = tuple(name.strip() for name in cases.split(",") if name.strip())
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device expects cpu or cuda, got {device}")
    if device != "cpu":
        if rounds is not None or threads is not None:
            raise ConfigError(
                f"--rounds and --threads are of a CPU; expected neither beside --device {device}"
            )
        from linrec.evals.bench import gpu_times

        timed = gpu_times.report(names, quick=quick)
        console.print(gpu_times.table(timed))
        if out:
            console.print(f"wrote {gpu_times.write(timed, out)}", highlight=False)
        return
    if out:
        check_writable(out)
    with console.status("measuring"):
        report = run_bench(names, quick=quick, rounds=rounds, threads=threads)
    if report["rows"]:
        console.print(table(report))
    if "forms" in report:
        console.print(form_table(report["forms"]))
    for line in remarks(report):
        console.print(line, highlight=False)
    for path in write(report, out) if out else ():
        console.print(f"wrote {path}", highlight=False)


@app.command()
def cache() -> None:
    """Print what decoding keeps: cache floats and parameters of attention variants, counted on the layers."""
    from rich.console import Console
    from rich.table import Table

    from linrec.evals.pages.cache_table import HEADERS, cells

    table = Table(*HEADERS, title="width 2048, 12 layers, SwiGLU 5456")
    for row in cells():
        table.add_row(*row)
    Console().print(table)


@app.command()
def suite(
    name: Annotated[
        str,
        typer.Argument(
            help="mqar, parity, modular, groups, mad, selective_copy or induction", show_default=False
        ),
    ],
    size: Annotated[
        str, typer.Option(help="small (minutes on two cores) or full (the papers' lengths)")
    ] = "small",
    seeds: Annotated[int | None, typer.Option(min=1, help="runs of each candidate")] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="a layer with options, e.g. delta_net:allow_neg_eigval=true,conv_size=0; repeatable"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for NAME.jsonl and NAME.png")] = Path("runs/suites"),
    device: Device = None,
) -> None:
    """Train rules side by side on a synthetic task; what is on file in --out is not run again."""
    from linrec.evals.suites.runner import make_suite, run_suite, with_rules

    chosen = make_suite(name, size)
    if rule:
        chosen = with_rules(chosen, rule)
    run_suite(chosen, out, seeds=None if seeds is None else range(seeds), device=_device(device))


@app.command()
def compare(
    mixers: Annotated[
        str, typer.Option(help="layers, separated by spaces: layer[+layer]:option=value,...; default: twelve")
    ] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="runs of each mixer")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="training steps of each run")] = None,
    size: Annotated[str, typer.Option(help="small (minutes a seed on a CPU) or full (for a GPU)")] = "small",
    out: Annotated[Path, typer.Option(help="folder for compare.jsonl, .png and .html")] = Path(
        "runs/compare"
    ),
    device: Device = None,
) -> None:
    """Train mixers of equal size on the same text, one table and one page; what is on file is not run again."""
    from rich.console import Console

    from linrec.evals.compare.run import run_compare
    from linrec.evals.compare.setting import MIXERS, make_setting
    from linrec.evals.compare.show import table

    setting = make_setting(size, steps)
    rows = run_compare(
        setting,
        out,
        mixers=mixers.split() or MIXERS,
        seeds=None if seeds is None else range(seeds),
        device=_device(device),
    )
    Console().print(table(rows, setting))


@app.command()
def kernels(
    case: Annotated[list[str] | None, typer.Option(help="calls to report on; default: all")] = None,
    width: Annotated[list[int] | None, typer.Option(help="K = V; default: 128")] = None,
    arch: Annotated[list[str] | None, typer.Option(help="default: sm_80, sm_90, sm_100, gfx942")] = None,
    traffic: Annotated[bool, typer.Option(help="count bytes and FLOPs as well")] = True,
    baseline: Annotated[
        Path, typer.Option(help="compare with these figures, and compile only what changed since")
    ] = Path("tests/kernels/baseline.json"),
    write: Annotated[bool, typer.Option("--write", help="make these figures the baseline")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="write the figures here as well")] = None,
) -> None:
    """Compile the GPU kernels for several architectures and count what they move. Needs Triton, but no GPU."""
    from linrec.evals.kernels.command import report_on

    if problems := report_on(case, width, arch, traffic, baseline, write, json_out):
        raise LinrecError("; ".join(problems))


@app.command()
def tune(
    rules: Annotated[
        str, typer.Option(help="comma-separated; the default: one of each kind")
    ] = "lightning,gla,gated_delta_net,kimi_delta_attention,generalized_delta",
    widths: Annotated[str, typer.Option(help="K = V, comma-separated")] = "64,128,256",
    dtypes: Annotated[
        str, typer.Option(help="of bfloat16, float16 and float32, comma-separated")
    ] = "bfloat16",
    chunks: Annotated[bool, typer.Option("--chunks", help="choose the length of chunks as well")] = False,
    out: Annotated[
        Path, typer.Option(help="the file to write; rows of the file that LINREC_LAUNCHES names are kept")
    ] = Path("launches.json"),
) -> None:
    """Time launch configurations of the matrix kernels on this GPU, results checked, and write the fastest to a file.

    LINREC_LAUNCHES=FILE makes the kernels use them. Every candidate is compiled: minutes for each rule and width.
    """
    from rich.console import Console

    from linrec.evals.kernels.tune_gpu import tune_command

    if not all(part.strip().isdecimal() for part in widths.split(",")):
        raise ConfigError(f"--widths expects numbers, comma-separated, got {widths!r}")
    names, kinds = ([part.strip() for part in text.split(",") if part.strip()] for text in (rules, dtypes))
    console = Console()
    tune_command(names, [int(part) for part in widths.split(",")], kinds, chunks, out, console)
    console.print(f"wrote {out}", highlight=False)


def _device(name: str | None) -> str:
    """The device of this name, or the best there is; ConfigError for one that nothing can be computed on."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except Exception as error:  # torch has a type of error for each way of not having a device
        said = str(error).split("\n")[0][:200]
        raise ConfigError(f"--device expects one that torch has here, got {name!r} ({said})") from error
    return name


if __name__ == "__main__":
    app()
