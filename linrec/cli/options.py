"""Options that several commands have, and what their values mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from linrec.errors import ConfigError

Checkpoint = Annotated[Path, typer.Argument(help="a checkpoint folder", show_default=False)]
Device = Annotated[str | None, typer.Option(help="torch device; default: a GPU where there is one")]
Metadata = Annotated[str | None, typer.Option(help="JSON object for the tasks, as lm-eval's --metadata")]
ReportFile = Annotated[Path | None, typer.Option(help="write the report here (JSON, and HTML beside it)")]


def device_named(name: str | None) -> str:
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


def json_object(text: str | None) -> dict[str, Any]:
    """What ``--metadata`` says; ConfigError for what is no JSON object."""
    import json

    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--metadata expects a JSON object, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"--metadata expects a JSON object, got {text!r}")
    return value


def names(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list that are not empty."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(option: str, text: str) -> list[int]:
    """The numbers of a comma-separated list; ConfigError for anything else."""
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ConfigError(f"{option} expects numbers, comma-separated, got {text!r}")
    return [int(part) for part in text.split(",")]


def wrote(out: Path | None) -> None:
    """Say where the two files of a report are."""
    from linrec.evals.pages.report import report_files
    from linrec.terminal import console

    if files := report_files(out):
        console().print(f"wrote {files[0]} and {files[1]}")
