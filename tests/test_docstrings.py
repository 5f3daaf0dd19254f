"""Examples in docstrings run, and print what stands there."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.source import MAPPED, python_files, relative

FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


def module_name(path: str) -> str:
    """The import name of a file of the checkout."""
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"linrec.{name}" if path.split("/")[0] in MAPPED else name


def examples() -> list[doctest.DocTest]:
    """Every docstring with an example, of the modules that have one."""
    files = [p for p in python_files("linrec", *MAPPED) if ">>> " in p.read_text(encoding="utf-8")]
    modules = [importlib.import_module(module_name(relative(path))) for path in files]
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [found for module in modules for found in finder.find(module) if found.examples]


@pytest.mark.parametrize("found", examples(), ids=lambda found: found.name)
def test_an_example_prints_what_stands_there(found: doctest.DocTest) -> None:
    said: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(found, out=said.append)
    assert not said, "".join(said)


def test_what_users_call_first_has_examples() -> None:
    first = {
        "Options",
        "Layer.forward",
        "LanguageModel.forward",
        "Session.feed",
        "Session.fork",
        "Session.save",
    }
    names = {found.name for found in examples()}
    assert not {name for name in first if not any(n.endswith(f".{name}") for n in names)}


def test_a_wrong_example_fails() -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    with pytest.raises(AssertionError, match="Expected"):
        test_an_example_prints_what_stands_there(wrong)
