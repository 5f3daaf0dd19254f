"""The ``linrec`` command, one file a command. What is heavy is imported when a command runs: ``--help`` is quick."""

from __future__ import annotations

from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from linrec.cli import (
    bench,
    cache,
    compare,
    compare_hf,
    convert,
    demo,
    evaluate,
    generate,
    kernels,
    lm_eval,
    rules,
    suite,
    train,
    tune,
)
from linrec.errors import LinrecError

# In the order of --help; each module's ``command`` is the command, its docstring the help.
COMMANDS: dict[str, ModuleType] = {
    "rules": rules,
    "train": train,
    "eval": evaluate,
    "lm-eval": lm_eval,
    "compare-hf": compare_hf,
    "convert": convert,
    "generate": generate,
    "demo": demo,
    "bench": bench,
    "cache": cache,
    "suite": suite,
    "compare": compare,
    "kernels": kernels,
    "tune": tune,
}


class Commands(TyperGroup):
    """The commands; a typed error becomes one line on stderr and exit code 1, unless ``--debug`` is on."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
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


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
) -> None:
    """Options before the command apply to all of them."""


for name, module in COMMANDS.items():
    app.command(name, **getattr(module, "SETTINGS", {}))(module.command)
