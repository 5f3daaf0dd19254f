"""Text and questions from the held-out modules of the running Python's standard library.

Both sets hold only modules that decode as UTF-8, so that any lm-eval model reads exactly the bytes that
are counted. The order is a seeded shuffle: the first n documents (``--limit``) are a fair sample.
"""

from __future__ import annotations

import random
from collections import defaultdict
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datasets import Dataset


FEW_SHOT = 16  # questions set aside as examples


class Module(NamedTuple):
    """A held-out module: its path in the library, its text and its length in raw bytes."""

    path: str
    text: str
    size: int


class Line(NamedTuple):
    """A candidate answer: the line, the module it comes from and where it starts there (characters)."""

    text: str
    module: int
    start: int


def held_out_modules(
    seed: int = 0, min_bytes: int = 200, max_document_bytes: int | None = None
) -> list[Module]:
    """Held-out modules in a seeded order; empty stubs and non-UTF-8 files are left out."""
    largest = float("inf") if max_document_bytes is None else max_document_bytes
    modules = [module for module in _modules() if min_bytes <= module.size <= largest]
    random.Random(seed).shuffle(modules)
    return modules


@cache
def _modules() -> tuple[Module, ...]:
    from linrec.models.corpus import standard_library

    modules = []
    for document in sorted(standard_library().held_out, key=lambda d: str(d.path)):
        # What is not UTF-8 could not be read back as the bytes that are counted.
        with suppress(UnicodeDecodeError):
            text = document.text.decode("utf-8")
            modules.append(Module(str(document.path), text, len(document.text)))
    return tuple(modules)


def build_documents(
    seed: int = 0, max_documents: int | None = None, max_document_bytes: int | None = None, **_: Any
) -> dict[str, Dataset]:
    """Whole modules for ``linrec_stdlib_bpb``. lm-eval passes further metadata, which is ignored."""
    from datasets import Dataset

    modules = held_out_modules(seed, max_document_bytes=max_document_bytes)[:max_documents]
    return {"test": Dataset.from_list([{"path": m.path, "text": m.text, "bytes": m.size} for m in modules])}


def bits_per_byte(doc: dict[str, Any], results: list[float]) -> dict[str, tuple[float, int]]:
    """(log-likelihood, raw bytes) of one module; lm-eval's aggregation sums both before dividing."""
    (loglikelihood,) = results
    return {"bits_per_byte": (loglikelihood, doc["bytes"])}


def build_questions(
    seed: int = 0, questions: int = 500, per_module: int = 12, context_bytes: int = 400, **_: Any
) -> dict[str, Dataset]:
    """Which line comes next? Four-way questions for ``linrec_stdlib_choice``.

    The context is the 100 to ``context_bytes`` bytes before a line, from a line's start. The three wrong
    lines come from other held-out modules and have the same indentation and nearly the same length, so that
    neither gives the answer away and a sum of log-probabilities compares like with like. Few-shot examples
    are further questions of the same kind, the same ones before every question.
    """
    from datasets import Dataset

    rng = random.Random(seed)
    modules = held_out_modules(seed)
    lines = [line for i, module in enumerate(modules) for line in _lines(i, module)]
    by_indent: dict[int, list[Line]] = defaultdict(list)
    for line in lines:
        by_indent[_indent(line.text)].append(line)
    used: dict[int, int] = defaultdict(int)
    rows: list[dict[str, Any]] = []
    for line in rng.sample(lines, len(lines)):
        if len(rows) == questions + FEW_SHOT:
            break
        if used[line.module] == per_module:
            continue
        context = _context(modules[line.module].text[: line.start], context_bytes)
        wrong = _wrong_lines(rng, line, by_indent[_indent(line.text)])
        if context is None or wrong is None:
            continue
        used[line.module] += 1
        answer = rng.randrange(4)
        choices = [*wrong[:answer], line.text, *wrong[answer:]]
        rows.append(
            {"path": modules[line.module].path, "context": context, "choices": choices, "answer": answer}
        )
    few = min(FEW_SHOT, len(rows) // 2)
    return {"test": Dataset.from_list(rows[:-few]), "fewshot": Dataset.from_list(rows[-few:])}


def _lines(index: int, module: Module) -> list[Line]:
    """Lines worth asking about: 12 to 100 visible characters."""
    found, start = [], 0
    for line in module.text.split("\n"):
        text = line.rstrip()
        if len(text.strip()) >= 12 and len(text) <= 100:
            found.append(Line(text, index, start))
        start += len(line) + 1
    return found


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _context(before: str, limit: int) -> str | None:
    """The last ``limit`` bytes of the text, from the start of a line, without the final newline."""
    tail = before.removesuffix("\n").encode("utf-8")
    cut = 0 if len(tail) <= limit else tail.find(b"\n", len(tail) - limit) + 1
    context = tail[cut:]
    whole_lines = len(tail) <= limit or cut > 0
    if not whole_lines or len(context.lstrip(b"\n")) < 100 or context[-1:].isspace():
        return None
    return context.decode("utf-8").lstrip("\n")


def _wrong_lines(rng: random.Random, line: Line, pool: list[Line]) -> list[str] | None:
    """Three different lines of other modules and of about this length, or None where few are found."""
    chosen: list[str] = []
    for _ in range(200):
        other = rng.choice(pool)
        similar = abs(len(other.text) - len(line.text)) <= 4
        if similar and other.module != line.module and other.text not in (line.text, *chosen):
            chosen.append(other.text)
            if len(chosen) == 3:
                return chosen
    return None
