"""What is wrong with a page, in words: names, links and commands that do not exist."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import shlex
import subprocess
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from typer.main import get_command

from linrec.cli import app
from linrec.errors import UnknownNameError
from linrec.evals.bench.run import NAMES
from linrec.evals.harness.task_loading import checked_names
from linrec.evals.small import layer_spec
from linrec.evals.suites.runner import make_suite
from linrec.layers import LAYERS
from linrec.rule import RULES
from tests.pages import FENCE, LANGUAGES, ROOT, Command, anchors, blocks, links, read, spans

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {option for command in COMMANDS.values() for part in command.params for option in part.opts}
TOP = {path.name for path in ROOT.iterdir() if not path.name.startswith(".git")}
REASONS = ("minutes", "GPU", "network")  # why a command is not run
VARIABLES = set(re.findall(r"^(\w+) *\?=", (ROOT / "Makefile").read_text(), re.M))


def _known(names: Iterable[str], known: Collection[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise UnknownNameError(f"{', '.join(unknown)} is none of {', '.join(known)}")


def _layers(specs: Iterable[str]) -> None:
    _known([name for spec in specs for name in layer_spec(spec)[0]], LAYERS)


# What the values of options name; words in capitals stand for the reader's own.
VALUES: dict[tuple[str, str], Callable[[Any], object]] = {
    ("train", "pattern"): lambda text: _layers(text.split(",")),
    ("compare", "mixers"): lambda text: _layers(text.split()),
    ("eval", "tasks"): lambda text: checked_names([text]),
    ("compare-hf", "tasks"): lambda text: checked_names([text]),
    ("suite", "name"): lambda text: text.isupper() or make_suite(text, "small"),
    ("suite", "rule"): lambda specs: _layers(specs or ()),
    ("bench", "cases"): lambda text: _known(filter(None, text.split(",")), (*NAMES, *RULES)),
    ("tune", "rules"): lambda text: _known(text.split(","), RULES),
}


def parsed(text: str) -> str | None:
    """What is wrong with a ``linrec`` command line; its options and what they name are read, and nothing is run."""
    words = shlex.split(text)
    if len(words) < 2 or words[1] not in COMMANDS:
        return f"{text}: no such command"
    try:
        given = COMMANDS[words[1]].make_context(words[1], words[2:]).params
        for (command, option), check in VALUES.items():
            if command == words[1]:
                check(given[option])
    except Exception as error:
        return f"{text}: {error}"
    return None


def made(text: str) -> str | None:
    """What is wrong with a ``make`` command line: it is run dry."""
    words = shlex.split(text)
    unknown = {word.partition("=")[0] for word in words if "=" in word} - VARIABLES
    if unknown:
        return f"{text}: the Makefile has no variable {', '.join(unknown)}"
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    return f"{text}: {done.stderr.strip()}" if done.returncode else None


def command_problem(text: str) -> str | None:
    """What is wrong with a command line, without running it."""
    words = shlex.split(text)
    if words[0] == "linrec":
        return parsed(text)
    if words[0] == "make":
        return made(text)
    if words[:2] == ["python", "-m"]:
        return None if importlib.util.find_spec(words[2]) else f"{text}: no such module"
    if words[0].startswith("--"):
        return None if words[0] in OPTIONS else f"{text}: no command has this option"
    script = ROOT / words[0]
    return None if script.is_file() and script.stat().st_mode & 0o100 else f"{text}: no such script"


def span_problem(span: str, new_files: set[str]) -> str | None:
    """What is wrong with a piece of code in the text: a command, an option, a file or a name of the kit."""
    if re.fullmatch(rf"linrec ({'|'.join(COMMANDS)})", span):
        return None
    if re.match(r"(linrec|make|python -m) \S|--\w", span):
        return command_problem(span)
    if re.fullmatch(r"[\w.{},*-]+(/[\w.{},*-]*)+", span) and span.split("/")[0] in TOP:
        found = span in new_files or all(any(ROOT.glob(path.strip("/"))) for path in _expanded(span))
        return None if found else f"{span}: no such file"
    if re.fullmatch(r"\w+\.py", span):
        return None if span in _file_names() else f"{span}: no such file"
    if name := re.fullmatch(r"(linrec(\.\w+)+)(\(.*\))?", span):
        return _name_problem(name[1])
    return None


def _expanded(path: str) -> list[str]:
    """``a/{b,c}`` as ``a/b`` and ``a/c``."""
    found = re.search(r"\{([^}]*)\}", path)
    return [path.replace(found[0], part) for part in found[1].split(",")] if found else [path]


def _file_names() -> set[str]:
    folders = ("linrec", "kernels", "models", "evals", "tests", ".ci")
    return {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}


def _name_problem(name: str) -> str | None:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        return f"{name}: {error}"
    return None


def link_problem(page: Path, link: str) -> str | None:
    """What is wrong with a link inside the project."""
    if re.match(r"\w+:", link):
        return None
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists():
        return f"{link}: no such file"
    return None if not anchor or anchor in anchors(target) else f"{link}: no such heading"


def _hidden(page: Path) -> list[str]:
    """Lines that look like code where no code is run: indented, in text blocks, or in other kinds of blocks."""
    code = r"(?:linrec|make|pip|python|import|from|def|class|\$|>>>) .*$"
    texts = "\n".join(block.code for block in blocks(page) if block.language == "text")
    indented = re.findall(rf"^ {{4}}{code}", FENCE.sub("", read(page)), re.M)
    return (
        indented
        + re.findall(rf"^{code}", texts, re.M)
        + re.findall(r"^(?:~~~|<pre|<code).*$", read(page), re.M)
    )


def problems(page: Path) -> list[str]:
    """All that is wrong with a page and can be seen without running its code."""
    found = [
        f"line {b.line}: a block says what it is: {', '.join(sorted(LANGUAGES))}; got {b.language!r}"
        for b in blocks(page)
        if b.language not in LANGUAGES
    ]
    found += [f"{line.strip()}: code stands in a block of its own kind" for line in _hidden(page)]
    new_files = {b.file for b in blocks(page) if b.file}
    found += [problem for span in spans(page) if (problem := span_problem(span, new_files))]
    return found + [problem for link in links(page) if (problem := link_problem(page, link))]


def reason(command: Command) -> str | None:
    """Why a command is only looked at, as the comment behind it says."""
    return next((word for word in REASONS if word in command.comment), None)
