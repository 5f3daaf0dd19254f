"""Recall in text: pairs, a needle in filler, a phone book, a copy. Made of seeded syllables, for any model.

Everything is ASCII, so that a length in characters is one in bytes. ``documents``, ``seed`` and the sizes
come from lm-eval's metadata; metadata of other tasks is ignored.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from linrec.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
DEPTHS = (0, 25, 50, 75, 100)


def build_mqar(
    documents: int = 100, seed: int = 0, pairs: int = 8, queries: int = 4, **_: Any
) -> dict[str, Dataset]:
    """Multi-query associative recall (Arora et al. 2023, arXiv:2312.04927) as text.

    ``pairs`` different words, each with a different word behind it; then keys once more, in an order of their
    own, each with its value. A row asks for the value of one of ``queries`` keys, all earlier answers given, so
    that the rows of a document share their beginning. There are ``documents * queries`` rows.
    """
    sizes = {"pairs": pairs, "queries": queries}
    _check(documents >= 1 and 1 <= queries <= pairs <= 1000, "1 <= queries <= pairs <= 1000", sizes)
    rng, rows = random.Random(seed), []
    for _document in range(documents):
        words = distinct_words(rng, 2 * pairs)
        table = list(zip(words[::2], words[1::2], strict=True))
        text = "".join(f"{key} {value}\n" for key, value in table)
        for key, value in rng.sample(table, queries):
            rows.append({"context": text + key, "answer": value})
            text += f"{key} {value}\n"
    return _rows(rows)


def build_needle(
    documents: int = 100, seed: int = 0, needle_lengths: tuple[int, ...] = (512, 1024), **_: Any
) -> dict[str, Dataset]:
    """One sentence with a seven-digit number in filler of about ``needle_lengths`` characters.

    Lengths and depths (where the needle stands, in percent) take turns, so that every depth is met at every
    length once ``documents`` reaches five times the lengths.
    """
    lengths = list(needle_lengths)
    fits = documents >= 1 and bool(lengths) and min(lengths) >= 256
    _check(fits, "needle_lengths >= 256", {"needle_lengths": lengths})
    rng, rows = random.Random(seed), []
    for number in range(documents):
        depth, length = DEPTHS[number % 5], lengths[number // 5 % len(lengths)]
        key, value = _word(rng, 3), _digits(rng, 7)
        needle = f"The number of {key} is {value}."
        question = f"\nQuestion: What is the number of {key}?\nAnswer: The number of {key} is"
        filler = _filler(rng, length - len(needle) - len(question))
        filler.insert(round(depth / 100 * len(filler)), needle)
        rows.append(
            {"context": " ".join(filler) + question, "answer": value, "depth": depth, "length": length}
        )
    return _rows(rows)


def build_phonebook(documents: int = 100, seed: int = 0, entries: int = 20, **_: Any) -> dict[str, Dataset]:
    """A list of ``entries`` names with seven-digit numbers, and one of them asked for after two examples.

    The look-up of Jelassi et al. 2024, arXiv:2402.01032.
    """
    _check(documents >= 1 and 3 <= entries <= 2000, "3 <= entries <= 2000", {"entries": entries})
    rng, rows = random.Random(seed), []
    for _document in range(documents):
        names = [word.capitalize() for word in distinct_words(rng, entries)]
        book = [f"{name}: {_digits(rng, 3)}-{_digits(rng, 4)}" for name in names]
        *examples, asked = rng.sample(book, 3)
        name, answer = asked.split(": ")
        context = "\n".join([*book, "", "Some numbers from the list above:", *examples, f"{name}:"])
        rows.append({"context": context, "answer": answer, "place": book.index(asked)})
    return _rows(rows)


def build_copy(
    documents: int = 100, seed: int = 0, copy_lengths: tuple[int, ...] = (32, 64, 128), **_: Any
) -> dict[str, Dataset]:
    """A random string of letters, to be written again; the lengths take turns."""
    lengths = list(copy_lengths)
    # The YAML lets 256 tokens be written, which are bytes for a model of bytes.
    fits = bool(lengths) and min(lengths) >= 1 and max(lengths) <= 255
    _check(documents >= 1 and fits, "1 <= copy_lengths <= 255", {"copy_lengths": lengths})
    rng, rows = random.Random(seed), []
    for number in range(documents):
        letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=lengths[number % len(lengths)]))
        rows.append({"context": f"Text: {letters}\nCopy:", "answer": letters})
    return _rows(rows)


def greedy_answer(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """``acc``: whether the answer is what greedy decoding writes; ``nats``: its negative log-probability."""
    ((loglikelihood, greedy),) = results
    return {"acc": float(greedy), "nats": -loglikelihood}


def written_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """``acc``: whether the text written is the answer; ``begun``: the share of it that is right to begin with."""
    (text,) = results
    text, answer = text.strip(), doc["answer"]
    right = next((n for n, c in enumerate(answer) if text[n : n + 1] != c), len(answer))
    return {"acc": float(text == answer), "begun": right / len(answer)}


def found_needle(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """``acc``: whether the text begins with the number, over all documents and at this one's depth."""
    found = float(results[0].strip().startswith(doc["answer"]))
    return {"acc": found, f"acc_depth_{doc['depth']}": found}


def distinct_words(rng: random.Random, count: int) -> list[str]:
    """Different words of two syllables, or of three where there are not enough (4 900 and 343 000)."""
    words: dict[str, None] = {}
    while len(words) < count:
        words[_word(rng, 2 if count < 2000 else 3)] = None
    return list(words)


def _word(rng: random.Random, syllables: int) -> str:
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(syllables))


def _digits(rng: random.Random, count: int) -> str:
    return str(rng.randrange(10 ** (count - 1), 10**count))


def _filler(rng: random.Random, size: int) -> list[str]:
    """Sentences of made-up words, ``size`` characters with the spaces between them, or a few less."""

    def sentences() -> Iterator[str]:
        while True:
            yield " ".join(_word(rng, rng.randint(1, 3)) for _ in range(rng.randint(4, 8))).capitalize() + "."

    found: list[str] = []
    for sentence in sentences():
        size -= len(sentence) + 1
        if size < 0:
            return found
        found.append(sentence)
    raise AssertionError("the sentences never end")


def _rows(rows: list[dict[str, Any]]) -> dict[str, Dataset]:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def _check(fits: bool, expected: str, came: dict[str, Any]) -> None:
    if not fits:
        raise ConfigError(f"metadata: expected documents >= 1 and {expected}, got {came}")
