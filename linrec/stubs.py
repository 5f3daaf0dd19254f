"""The names that files give to ``linrec.rules`` and ``linrec.layers``, written down for type checkers and editors.

``python -m linrec.stubs`` (``make stubs``) writes the ``__init__.pyi`` of both. Nothing reads them when code runs.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from linrec.files import write_text

PACKAGES = ("linrec.rules", "linrec.layers")


def stub(package: str) -> str:
    """The text of the package's ``__init__.pyi``: an import of each name from the module that has it."""
    homes: dict[str, str] = import_module(package).HOMES
    lines = sorted(
        (home, _order(name), f"from {home} import {name} as {name}") for name, home in homes.items()
    )
    head = "# Written by `make stubs`: the names that the files of this folder give to it."
    return "\n".join([head, "", *(line for *_, line in lines), ""])


def stub_path(package: str) -> Path:
    """Where it stands."""
    return Path(import_module(package).__path__[0]) / "__init__.pyi"


def _order(name: str) -> tuple[int, str]:
    """Imports are sorted as ruff sorts them: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name.lower()


if __name__ == "__main__":
    for package in PACKAGES:
        write_text(stub_path(package), stub(package))
