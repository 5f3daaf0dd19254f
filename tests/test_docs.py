"""The pages are true for a stranger: their code runs as it stands, their commands and links exist.

CONTRIBUTING says how a page marks its blocks, and which of them are only looked at.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from linrec.cli import app
from tests.page_checks import command_problem, problems, reason
from tests.pages import PAGES, ROOT, Block, blocks, commands, spans

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
EXAMPLE = ROOT / "CONTRIBUTING.md"
# Options behind the page's own that make a command small; the last of two counts.
SMALL = {
    "train": "--pattern gated_delta_net --d-model 16 --heads 2 --steps 2 --batch-size 2 --seq-len 32",
    "generate": "--max-tokens 5",
    "eval": """--limit 1 --metadata '{"questions": 4, "max_document_bytes": 600}'""",
}
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@named
def test_names_commands_and_links_exist(page: Path) -> None:
    assert not problems(page)


def having(language: str) -> pytest.MarkDecorator:
    """The pages with blocks of a language that are run where they stand."""
    pages = [p for p in PAGES if any(b.language == language and not b.file for b in blocks(p))]
    assert pages
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.stem)


def python(folder: Path, *words: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, on the linrec of a checkout."""
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )


@having("python")
def test_python_blocks_are_one_program(page: Path, tmp_path: Path) -> None:
    program = ""
    for block in blocks(page):
        if block.language == "python" and not block.file:
            program += (
                "\n" * (block.line - 1 - program.count("\n")) + block.code
            )  # errors name the page's lines
    (tmp_path / "page.py").write_text(program, encoding="utf-8")
    done = python(tmp_path, "-W", "error", "page.py")
    assert done.returncode == 0, f"{page.name}: {done.stderr}"


@having("sh")
def test_shell_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, as a reader would type them: what one makes, the next may use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for command in commands(page):
        assert not (problem := command_problem(command.text)), f"line {command.line}: {problem}"
        words = shlex.split(command.text)
        if words[0] != "linrec" or reason(command):
            continue
        _readers_own(words)
        small = shlex.split(SMALL.get(words[1], ""))
        done = CliRunner().invoke(app, [*words[1:], *small], catch_exceptions=False)
        assert done.exit_code == 0, f"line {command.line}: {done.output}"
        assert done.stdout.strip(), f"line {command.line}: nothing is printed"


def _readers_own(words: Sequence[str]) -> None:
    """Make the folders that the page leaves to its reader."""
    for word in words:
        if word.startswith("my_"):
            Path(word).mkdir(exist_ok=True)
            for n in range(30):
                (Path(word) / f"{n}.txt").write_text(f"{n}: once upon a time there was a state.\n" * 9)


def copy_of_the_checkout(folder: Path) -> None:
    """Code and pages; the links inside linrec stay links."""
    unwanted = shutil.ignore_patterns("__pycache__", "results", "*.png", "*.so")
    for name in ("linrec", "kernels", "models", "evals", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "Makefile", "README.md"):
        shutil.copy(ROOT / name, folder / name)


def put(block: Block, folder: Path) -> None:
    """Put a block into the file that it names, or apply it."""
    assert block.file is not None
    path = folder / block.file
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if block.language == "diff":
        path.write_text(patched(before, block), encoding="utf-8")
        return
    place = block.place
    assert place is not None
    code, name = block.code[place.end() :], place["name"]
    if name is None:
        assert not before, f"{block.file}: expected a new file"
        path.write_text(code, encoding="utf-8")
        return
    head, line, tail = re.split(rf"^({name} = )", before, flags=re.M)
    path.write_text(f"{head}{code}\n\n{line}{tail}", encoding="utf-8")


def patched(text: str, block: Block) -> str:
    """The text after the block's hunks: lines that begin with a space stay, with + are new, with - go."""
    for hunk in re.split(r"^@@.*\n", block.code.partition("\n")[2], flags=re.M):
        lines = [(line[:1], line[1:] + "\n") for line in hunk.splitlines()]
        old = "".join(line for kind, line in lines if kind in " -")
        new = "".join(line for kind, line in lines if kind in " +")
        assert text.count(old) == 1, f"{block.file}: expected once in the file:\n{old}"
        text = text.replace(old, new)
    return text


@pytest.mark.slow
def test_the_worked_example_passes_the_tests_it_names(tmp_path: Path) -> None:
    """The rule, its loop, its layer, registered in a copy of the checkout; then the tests of the page, and the row."""
    copy_of_the_checkout(tmp_path)
    for block in blocks(EXAMPLE):
        if block.file:
            put(block, tmp_path)
    table = python(tmp_path, "-m", "linrec.cli", "rules", "--markdown", root=tmp_path).stdout
    assert "| leaky_delta |" in table
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- rules:begin -->\n", "<!-- rules:end -->"
    row = f"{readme.partition(begin)[0]}{begin}{table}{end}{readme.partition(end)[2]}"
    (tmp_path / "README.md").write_text(row, encoding="utf-8")
    asked = [
        found[1] for span in spans(EXAMPLE) if (found := re.match(r'make test PYTEST_ARGS="([^"]+)"', span))
    ]
    assert len(asked) >= 3
    for arguments in asked:
        done = python(tmp_path, *PYTEST, *arguments.split(), root=tmp_path)
        assert done.returncode == 0, f"{arguments}: {done.stdout[-3000:]}{done.stderr}"
        assert re.search(r"\d+ passed", done.stdout)


def test_the_example_of_the_design_is_the_rule_itself() -> None:
    from linrec.rules import gated_delta_net

    (block,) = (b for b in blocks(ROOT / "DESIGN.md") if b.language == "python")
    source = (ROOT / "linrec/rules/gated_delta_net.py").read_text(encoding="utf-8")
    missing = [line for line in block.code.splitlines() if line not in source.splitlines()]
    assert not missing
    assert gated_delta_net.cite in block.code


BROKEN = """
# A page

`linrec train --epochs 3`, `linrec nothing`, `make nothing`, `linrec/no_such_file.py`, `no_such_file.py`,
`linrec.rules.no_such_rule`, `--no-such-option`, [a](no_such_page.md), [b](#no-such-heading), [c](#a-page),
`linrec suite no_suite`, `linrec compare --mixers "gla no_layer"`, `linrec eval x --tasks linrec_no_task`,
`linrec rules`, `linrec/rule.py`, `linrec.rules.gla`, `linrec/{rules,layers}`, `make test PYTEST_ARGZ="-x"`

```
what is this
```

    linrec rules

```text
import linrec
```

~~~
linrec rules
~~~
"""
WRONG = [
    "line 10: a block", "linrec rules: code", "import linrec: code", "~~~: code", "~~~: code",
    "--epochs", "linrec nothing", "make nothing", "no_suite", "no_layer", "linrec_no_task", "PYTEST_ARGZ", "--no-such",
    "linrec/no_such_file.py", "no_such_file.py: no", "no_such_rule", "no_such_page.md", "#no-such-heading",
]  # fmt: skip


def test_the_checks_see_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(BROKEN)
    found = problems(page)
    assert len(found) == len(WRONG), found
    assert not [wrong for wrong in WRONG if wrong not in "\n".join(found)], found


def test_a_block_that_does_not_fit_is_seen() -> None:
    block = Block(1, "diff", "--- a.py\n one\n+two\n@@\n-three\n")
    assert patched("one\nthree\n", block) == "one\ntwo\n"
    with pytest.raises(AssertionError, match=r"a\.py"):
        patched("one\n", block)
