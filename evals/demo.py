"""``linrec demo``: train, stream and evaluate a small hybrid on Python's standard library, beside softmax.

Everything it prints is measured in the run, on the machine it runs on, and is kept in ``metrics.json``.
"""

from __future__ import annotations

import gzip
import lzma
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.panel import Panel
from rich.table import Table

from linrec.errors import ConfigError
from linrec.evals.harness.run import evaluate
from linrec.evals.pages.pictures import demo_picture
from linrec.evals.records import versions, write_json
from linrec.evals.small import (
    byte_config,
    count_parameters,
    parameters,
    same_size,
    state_bytes_after,
    stream_text,
)
from linrec.files import check_writable
from linrec.models.corpus import standard_library
from linrec.models.language_model import LanguageModel
from linrec.models.training import TrainConfig, train
from linrec.stream import Session
from linrec.terminal import console, show

if TYPE_CHECKING:
    from rich.console import Console

    from linrec.models.config import Config
    from linrec.models.corpus import Corpus

STEPS = 400
LABELS = {"hybrid": "gated delta net + softmax hybrid", "softmax": "softmax only"}
HYBRID = ("gated_delta_net", "gated_delta_net", "softmax_attention", "gated_delta_net")
SETTINGS = TrainConfig(steps=STEPS, batch_size=8, seq_len=256, lr=4e-3, seed=0)
WIDTH, HEADS = 128, 2
DOCUMENTS = {"max_document_bytes": 16_384}
QUESTIONS = 200
CONTEXTS = tuple(1 << n for n in range(6, 15))
TASKS = ("linrec_stdlib_bpb", "linrec_stdlib_choice")
# Start-up, evaluation, streaming and the picture, measured on two cores; training gets the rest.
OVERHEAD_SECONDS = 75.0


# Inside a function there are words to write as well as blanks. A nucleus (top_p) would be the blank alone where an
# indentation has begun: a small model gives the next blank 0.9, the word that ends them comes from the rest.
PROMPT = 'import os\n\n\ndef read_lines(path):\n    """Return the lines of'
SAMPLING: dict[str, Any] = {"temperature": 0.9, "top_k": 10}
STREAMED = 400  # bytes


def run_demo(
    out: str | Path, *, steps: int = STEPS, minutes: float = 4.5, prompt: str = PROMPT
) -> dict[str, Any]:
    """Run the demo into ``out`` and return what ``metrics.json`` holds.

    ``steps`` is fixed, so that a run can be repeated; only where the machine would not finish both models
    within about ``minutes`` are the steps of both cut to the same smaller number, and the output says so.
    """
    started = time.perf_counter()
    out, screen = Path(out), console()
    check_writable(out)
    if not prompt:
        raise ConfigError("prompt: expected text to continue, got none")
    corpus, configs = standard_library(), make_configs()
    _introduce(screen, corpus, configs)
    settings = replace(SETTINGS, steps=affordable_steps(configs, corpus, steps, minutes, screen))
    runs = {
        key: _train(key, label, configs[key], corpus, settings, out, screen) for key, label in LABELS.items()
    }
    completion = _stream(out / "hybrid", prompt, screen)
    scores = {key: _evaluate(key, out / key, settings.seq_len, screen) for key in runs}
    metrics: dict[str, Any] = {
        "models": runs,
        "scores": scores,
        "compressors": compressors(),
        "state_bytes": measure_state_bytes(configs),
        "completion": completion,
        "training": {"steps": settings.steps, "asked": steps, "batch": settings.batch_size,
                     "seq_len": settings.seq_len, "lr": settings.lr, "seed": settings.seed},
        "corpus": {"train": _size(corpus.train), "held_out": _size(corpus.held_out)},
        "documents": {**DOCUMENTS, "scored": scores["hybrid"]["carried"]["samples"]},
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    metrics |= _headlines(metrics)
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    write_json(out / "metrics.json", metrics)
    demo_picture(metrics, out / "demo.png")
    _conclude(screen, metrics, out)
    return metrics


def make_configs() -> dict[str, Config]:
    """The hybrid, and softmax attention alone in as many parameters."""
    # The recurrent layers already tell positions apart; without rotary embedding the attention layer among
    # them does not meet angles beyond seq_len that it was never trained on.
    options = {"softmax_attention": {"rope_base": None}}
    hybrid = byte_config(HYBRID, d_model=WIDTH, num_heads=HEADS, layer_options=options)
    return {"hybrid": hybrid, "softmax": same_size(hybrid, ("softmax_attention",))}


def affordable_steps(
    configs: dict[str, Config], corpus: Corpus, steps: int, minutes: float, screen: Console
) -> int:
    """``steps``, or fewer where a few timed steps of each model show that they will not fit."""
    trial = replace(SETTINGS, steps=4)
    seconds = 0.0
    for config in configs.values():
        model = LanguageModel(config)
        train(model, corpus, replace(trial, steps=1))
        seconds += train(model, corpus, trial).seconds / trial.steps
    fit = int(max(60.0 * minutes - OVERHEAD_SECONDS, 15.0) / seconds)
    if fit >= steps:
        return steps
    screen.print(
        f"{steps} steps of both models would take {steps * seconds / 60:.1f} minutes here; training "
        f"both for {fit} steps to stay within --minutes {minutes:g}",
        style="yellow",
    )
    return max(fit, 10)


def _train(
    key: str, label: str, config: Config, corpus: Corpus, settings: TrainConfig, out: Path, screen: Console
) -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = LanguageModel(config)
    screen.print(f"training: {label}, {parameters(model):,} parameters")
    result = train(model, corpus, settings, progress=True)
    model.save(out / key)
    return {
        "label": label,
        "layers": list(config.layer_names),
        "parameters": parameters(model),
        "losses": [round(loss, 5) for loss in result.losses],
        "seconds": round(result.seconds, 1),
        "bytes_per_second": round(result.tokens_per_second),
        "checkpoint": key,
    }


def _stream(checkpoint: Path, prompt: str, screen: Console) -> dict[str, Any]:
    """Feed the prompt and print the continuation as it comes, one recurrent step a byte."""
    session = Session(LanguageModel.load(checkpoint).eval(), seed=0)
    screen.rule("streaming from the checkpoint, one recurrent step a byte")
    screen.print(prompt, style="bold", end="")
    started, text = time.perf_counter(), ""
    for piece in stream_text(session, prompt, STREAMED, **SAMPLING):
        text += piece
        screen.print(piece, end="")
    rate = len(text.encode()) / (time.perf_counter() - started)
    screen.print()
    screen.rule(f"{rate:.0f} bytes/s")
    return {"prompt": prompt, "text": text, **SAMPLING, "bytes_per_second": round(rate)}


def _evaluate(key: str, checkpoint: Path, seq_len: int, screen: Console) -> dict[str, dict[str, Any]]:
    """lm-eval on both tasks; the softmax model's documents once more in windows of its training length.

    Past that length its rotary angles are new to it, so carrying the cache through a document need not be
    the best that can be had of it.
    """
    options = {**DOCUMENTS, "questions": QUESTIONS}
    with screen.status(f"lm-eval on the {key} model: {', '.join(TASKS)}"):
        carried = evaluate(checkpoint, TASKS, metadata=options, progress=False)
        scores = {"carried": carried["tasks"][TASKS[0]], "choice": carried["tasks"][TASKS[1]]}
        scores["cost"] = {name: carried[name] for name in ("seconds", "tokens_processed")}
        if key == "softmax":
            windows = evaluate(
                checkpoint, TASKS[:1], metadata=options, rolling_window=seq_len, progress=False
            )
            scores["windows"] = windows["tasks"][TASKS[0]]
    return scores


def compressors() -> dict[str, Any]:
    """Bits per byte of general-purpose compressors on the scored documents, each compressed alone."""
    from linrec.evals.harness.tasks.stdlib import build_documents

    documents = [text.encode("utf-8") for text in build_documents(**DOCUMENTS)["test"]["text"]]
    total = sum(map(len, documents))
    packed = {
        "gzip": sum(len(gzip.compress(d, compresslevel=9, mtime=0)) for d in documents),
        "xz": sum(len(lzma.compress(d, preset=9 | lzma.PRESET_EXTREME)) for d in documents),
    }
    return {"bytes": total} | {name: 8 * size / total for name, size in packed.items()}


def measure_state_bytes(configs: dict[str, Config]) -> dict[str, Any]:
    """Bytes of the state after contexts of growing length, from the states that the models return."""
    recurrent = replace(configs["hybrid"], pattern=("gated_delta_net",), num_layers=len(HYBRID))
    curves: dict[str, Any] = {}
    for key, config, label in (
        ("softmax", configs["softmax"], "softmax only (KV cache)"),
        ("hybrid", configs["hybrid"], "hybrid"),
        ("recurrent", recurrent, "gated delta net only"),
    ):
        sizes = state_bytes_after(LanguageModel(config), CONTEXTS)
        curves[key] = {"label": label, "bytes": sizes}
    return {"context": list(CONTEXTS), "curves": curves}


def _headlines(metrics: dict[str, Any]) -> dict[str, Any]:
    """Title, caption and bars of the picture; the softmax model is shown under its better protocol."""
    scores, pack, train_ = metrics["scores"], metrics["compressors"], metrics["training"]
    soft = {name: scores["softmax"][name]["bits_per_byte"] for name in ("carried", "windows")}
    size = metrics["models"]["hybrid"]["parameters"], metrics["models"]["softmax"]["parameters"]
    bars = [
        {"kind": "hybrid", "label": "hybrid\nstate\ncarried", "value": scores["hybrid"]["carried"]["bits_per_byte"]},
        {"kind": "softmax", "label": f"softmax\n{train_['seq_len']}-byte\nwindows", "value": soft["windows"]},
        {"kind": "softmax", "label": "softmax\ncache\ncarried", "value": soft["carried"]},
        {"kind": "compressor", "label": "xz -9e\neach\nalone", "value": pack["xz"]},
        {"kind": "compressor", "label": "gzip -9\neach\nalone", "value": pack["gzip"]},
    ]  # fmt: skip
    note = f"{metrics['documents']['scored']} whole modules, {pack['bytes'] / 1e3:.0f} kB, through lm-eval"
    return {
        "title": f"linrec demo: {size[0] / 1e6:.2f} M-parameter byte models, {train_['steps']} steps each, "
        "on Python's standard library",
        "caption": f"Both models: batch {train_['batch']} x {train_['seq_len']} bytes a step, same batches, "
        f"same optimiser; {size[0]:,} and {size[1]:,} parameters. Modules are held out by a hash of their "
        f"path. Windows overlap by half. Compressors see no training data.",
        "bits_note": note,
        "bits_per_byte": bars,
    }


def _size(documents: Any) -> dict[str, int]:
    return {"modules": len(documents), "bytes": sum(len(d.text) for d in documents)}


def _introduce(screen: Console, corpus: Corpus, configs: dict[str, Config]) -> None:
    train_size, held = _size(corpus.train), _size(corpus.held_out)
    counts = {key: count_parameters(config) for key, config in configs.items()}
    screen.print(
        Panel(
            f"text: this Python's standard library, {train_size['modules']} modules "
            f"({train_size['bytes'] / 1e6:.1f} MB); held out by path: {held['modules']} "
            f"({held['bytes'] / 1e6:.1f} MB)\n"
            f"hybrid: {' > '.join(configs['hybrid'].layer_names)}, {counts['hybrid']:,} parameters\n"
            f"baseline: {len(HYBRID)} x softmax_attention, {counts['softmax']:,} parameters",
            title="linrec demo",
            title_align="left",
        ),
        soft_wrap=False,
    )


def _conclude(screen: Console, metrics: dict[str, Any], out: Path) -> None:
    table = Table(title="held-out modules")
    for column in ("", "bits per byte", "next line of four: acc", "acc_norm"):
        table.add_column(column, justify="left" if not column else "right")
    choice = {key: metrics["scores"][key]["choice"] for key in metrics["scores"]}
    for n, bar in enumerate(metrics["bits_per_byte"]):
        shown = choice.get(bar["kind"]) if n < 2 else None
        accuracy = ("", "") if shown is None else (f"{shown['acc']:.3f}", f"{shown['acc_norm']:.3f}")
        table.add_row(bar["label"].replace("\n", " "), f"{bar['value']:.3f}", *accuracy)
    show(table, screen)
    series = metrics["state_bytes"]
    last = {key: curve["bytes"][-1] for key, curve in series["curves"].items()}
    screen.print(
        f"state after {series['context'][-1]:,} bytes: softmax only {last['softmax']:,}, hybrid "
        f"{last['hybrid']:,}, recurrent only {last['recurrent']:,} bytes"
    )
    files = ", ".join(str(out / name) for name in (*LABELS, "metrics.json", "demo.png"))
    screen.print(f"wrote {files} in {metrics['seconds']:.0f} s")
