"""Docstrings to Markdown: their marks of reStructuredText become Markdown's, for the rules' pages and the API's."""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Function, Module, Object

BLOCK = re.compile(r"^( *)\.\. code-block:: (\w+)\n\n((?:\1 +.*\n|\n)+)", re.M)
LITERAL = re.compile(r"^( *)((?:.*\S)?)::\n\n((?:\1 +.*\n|\n)+)", re.M)
TABLE = re.compile(r"^( *)(=+(?: +=+)+)\n(.*?)^\1\2\n?(?=\n|\Z)", re.M | re.S)
ROLE = re.compile(r":(?:func|class|mod|meth|attr|data|exc):`~?([^`]+)`")


def to_markdown(text: str) -> str:
    """The docstring (without its indentation) in Markdown."""
    text = BLOCK.sub(lambda m: _fence(m[2], m[3]), text.strip("\n") + "\n")
    text = LITERAL.sub(
        lambda m: _fence("text", m[3]) if not m[2] else f"{m[2]}:\n\n{_fence('text', m[3])}", text
    )
    text = TABLE.sub(lambda m: _table(m[2], m[3]), text)
    text = ROLE.sub(lambda m: f"`{m[1].removeprefix('linrec.')}`", text)
    return re.sub(r"(?<!`)``(?!`)", "`", text).strip()


def _table(rule: str, body: str) -> str:
    return _fence("text", body.replace(rule, "").replace("``", ""), split=False)


def _fence(language: str, body: str, split: bool = True) -> str:
    lines = body.strip("\n").splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    inside = "\n".join(line[indent:] for line in lines)
    if split and language == "text":  # equations beside each other, one a line
        inside = re.sub(r";[ ]{2,}(?=\S)", "\n", inside)
    return f"```{language}\n{inside}\n```\n\n"


class MarkdownDocstrings(Extension):
    """Griffe extension: every docstring that mkdocstrings shows is turned to Markdown."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called once for every object that is collected."""
        if isinstance(obj, Module | Class | Function) and obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
