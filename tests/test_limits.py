"""What a reader can hold at once: the length of files and functions, branches, and a word on everything public.

Tests are read as much as what they test, so the limits hold for them too; they need no docstrings.
"""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.source import EVERYWHERE, ROOT, python_files, relative

FILE_LINES, FUNCTION_LINES = 300, 40
RUFF = (
    "C901,D102,D103"  # branches (at most 10), docstrings of public methods and functions; see pyproject.toml
)

# Not yet there. Whatever has become short is taken out: a test below says so.
LONG_FILES = {
    "kernels/matrix/tiles.py",
}
LONG_FUNCTIONS = {
    "kernels/matrix/backward_keys.py",
    "kernels/matrix/backward_scan.py",
    "kernels/matrix/backward_values.py",
    "kernels/matrix/forward_scan.py",
    "kernels/matrix/scores.py",
}


def long_file(text: str) -> bool:
    """Whether a file has more lines than it may have."""
    return len(text.splitlines()) > FILE_LINES


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the last one: the signature counts, since it is read; the docstring does not."""
    assert node.end_lineno is not None
    first = node.body[0]
    said = 0
    if ast.get_docstring(node, clean=False) is not None:
        assert first.end_lineno is not None
        said = first.end_lineno - first.lineno + 1
    return node.end_lineno - node.lineno + 1 - said


def long_functions(text: str) -> list[str]:
    """The functions that are too long, those inside others too, with their lengths."""
    functions = [
        n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [f"{f.name}: {n} lines" for f in functions if (n := function_lines(f)) > FUNCTION_LINES]


def ruff(*files: str, text: str | None = None) -> list[str]:
    """What ruff says about these files, or a text by the name of one, by the settings of the project."""
    pytest.importorskip("ruff")
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--output-format",
        "concise",
        "--select",
        RUFF,
    ]
    done = subprocess.run([*command, *files], cwd=ROOT, input=text, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if any(rule in line for rule in RUFF.split(","))]


def all_texts() -> dict[str, str]:
    """Every file of the project by its name."""
    texts = {relative(path): path.read_text(encoding="utf-8") for path in python_files(*EVERYWHERE)}
    assert len(texts) > 400
    return texts


def test_files_are_short() -> None:
    long = {name for name, text in all_texts().items() if long_file(text)}
    assert long - LONG_FILES == set(), f"over {FILE_LINES} lines: which idea has no file of its own yet?"
    assert LONG_FILES - long == set(), "short by now: take it out of LONG_FILES"


def test_functions_are_short() -> None:
    long = {name: found for name, text in all_texts().items() if (found := long_functions(text))}
    wrong = {name: found for name, found in long.items() if name not in LONG_FUNCTIONS}
    assert not wrong, f"over {FUNCTION_LINES} lines from def to end, without the docstring: {wrong}"
    assert LONG_FUNCTIONS - long.keys() == set(), "short by now: take it out of LONG_FUNCTIONS"


def test_branches_are_few_and_everything_public_says_what_it_is() -> None:
    assert ruff(".", ".ci") == []


def body(lines: int) -> str:
    return "".join(f"    x{i} = {i}\n" for i in range(lines))


AT_THE_LIMIT = [
    ("def f():\n" + body(39), False, "a line for the signature and 39 more"),
    ("def f():\n" + body(40), True, "one more"),
    ('def f():\n    """Says.\n\n    More.\n    """\n' + body(39), False, "the docstring does not count"),
    ("def f(\n    a,\n    b,\n):\n" + body(37), True, "but the signature does"),
    ("@cache\n@other\ndef f():\n" + body(39), False, "decorators do not"),
    ("class A:\n    async def f(self):\n" + body(40).replace("    ", "        "), True, "methods"),
]


@pytest.mark.parametrize(("text", "long", "why"), AT_THE_LIMIT)
def test_what_counts_as_a_long_function(text: str, long: bool, why: str) -> None:
    assert bool(long_functions(text)) is long, why


def test_a_long_file_is_found() -> None:
    assert not long_file("x = 1\n" * FILE_LINES)
    assert long_file("x = 1\n" * (FILE_LINES + 1))


BRANCHES = "def _f(x):\n" + "".join(f"    if x == {i}:\n        return {i}\n" for i in range(10))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('"""A."""\n\n\n' + BRANCHES, "C901"),
        ('"""A."""\n\n\nclass A:\n    """A."""\n\n    def f(self):\n        pass\n', "D102"),
        ('"""A."""\n\n\ndef f():\n    pass\n', "D103"),
    ],
)
@pytest.mark.parametrize(
    "name", ["linrec/bad.py", "kernels/bad.py", "models/bad.py", "evals/bad.py", "docs/bad.py"]
)
def test_ruff_finds_bad_files_in_every_folder(name: str, text: str, rule: str) -> None:
    found = ruff("--stdin-filename", name, "-", text=text)
    assert len(found) == 1
    assert rule in found[0]
