"""``linrec convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

To = Annotated[str, typer.Option(help="the format to write; --formats lists them")]
Formats = Annotated[bool, typer.Option("--formats", help="list the formats that are read and written")]


def command(
    source: Annotated[Path | None, typer.Argument(help="a checkpoint folder", show_default=False)] = None,
    target: Annotated[Path | None, typer.Argument(help="the folder to write", show_default=False)] = None,
    to: To = "linrec",
    formats: Formats = False,
) -> None:
    """Write a checkpoint in another project's format, or one of theirs in ours; weights keep every bit."""
    from linrec.errors import ConfigError
    from linrec.models.formats.registry import all_formats
    from linrec.models.language_model import LanguageModel
    from linrec.models.loading import convert

    if formats:
        typer.echo("\n".join(["linrec", *all_formats()]))
        return
    if source is None or target is None:
        raise ConfigError("expected two folders: the checkpoint to read, and the one to write")
    convert(LanguageModel, source, target, to)
    typer.echo(f"wrote {target} as {to}")
