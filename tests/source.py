"""The files of the project, as the checks of its source read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("kernels", "models", "evals")  # top-level folders that are installed inside linrec
OPTIONAL = ("triton", "fla", "transformers", "lm_eval", "datasets", "matplotlib")
EVERYWHERE = ("linrec", "kernels", "models", "evals", "docs", "tests", ".ci")


def python_files(*folders: str) -> Iterator[Path]:
    """Every file of Python in these folders of the checkout; the links inside ``linrec`` are not followed."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(ROOT)):
                yield path


def relative(path: Path) -> str:
    """The name of a file in messages and lists."""
    return path.relative_to(ROOT).as_posix()
