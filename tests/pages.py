"""The pages of the project, taken apart: blocks of code, code in the text, links and headings."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SITE_ALONE = ROOT / "docs" / "index.md"  # links to pages that are generated; tests/docs has it
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "DESIGN.md")),
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page != SITE_ALONE),
]
LANGUAGES = {"python", "sh", "diff", "text"}
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)[^`\n]*\n(?P<code>.*?)^(?P=indent)``` *$", re.M | re.S
)
PLACE = re.compile(r"# in (?P<file>\S+\.py)(, above (?P<name>\w+))?\n")


class Block(NamedTuple):
    """One fenced block: the line of its first code line, counted from 1, its language, and its code, dedented."""

    line: int
    language: str
    code: str

    @property
    def place(self) -> re.Match[str] | None:
        """The file that a Python block says it belongs into, in its first line."""
        return PLACE.match(self.code) if self.language == "python" else None

    @property
    def file(self) -> str | None:
        """The file that the block makes or changes."""
        if self.language == "diff":
            return self.code.splitlines()[0].removeprefix("--- ")
        return self.place["file"] if self.place else None


class Command(NamedTuple):
    """A line of a shell block without its comment, and the comment."""

    line: int
    text: str
    comment: str


def read(page: Path) -> str:
    """The text of a page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = read(page)
    return [
        Block(text.count("\n", 0, found.start("code")) + 1, found["language"], textwrap.dedent(found["code"]))
        for found in FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """The page without its blocks, the generated table and its indented lines."""
    text = FENCE.sub("", read(page))
    text = re.sub(r"<!-- rules:begin -->.*<!-- rules:end -->", "", text, flags=re.S)
    return re.sub(r"^ {4}.*\n", "", text, flags=re.M)


def spans(page: Path) -> list[str]:
    """The code in a page's text: what stands between single backticks, line breaks made spaces."""
    return [" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


def commands(page: Path) -> Iterator[Command]:
    """The lines of the shell blocks."""
    for block in blocks(page):
        if block.language == "sh":
            for number, line in enumerate(block.code.splitlines(), block.line):
                text, _, comment = line.partition(" #")
                if text.strip() and not text.startswith("#"):
                    yield Command(number, text.strip(), comment.strip())


def links(page: Path) -> list[str]:
    """Where the links and pictures of a page lead."""
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(page)), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
