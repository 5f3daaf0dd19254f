"""``linrec lm-eval``: lm-eval's own command line, which knows the model ``linrec`` then."""

from __future__ import annotations

import sys

import typer

from linrec.errors import ConfigError

# Everything behind the name is lm-eval's, ``--help`` too.
SETTINGS = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    "add_help_option": False,
}


def command(context: typer.Context) -> None:
    """lm-eval's own command line with the model \"linrec\": --model linrec --model_args pretrained=FOLDER ..."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ConfigError(f"lm-eval is not installed ({error}): pip install linrec[eval]") from error
    import linrec.evals.harness.lm_eval_model  # noqa: F401 - enters the model

    sys.argv = ["lm_eval", *context.args]
    cli_evaluate()
