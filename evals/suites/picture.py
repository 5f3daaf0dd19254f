"""One picture a suite, drawn from its records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linrec.evals.suites.suite import Suite


def draw(suite: Suite, records: list[dict[str, Any]], path: Path) -> None:
    """todo."""
