"""``python -m linrec.cli``."""

from linrec.cli import app

app()
