"""The recall tasks: solvable by a program that reads the context, for any lm-eval model, at any size."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM

from linrec.errors import ConfigError, LinrecError
from linrec.evals.harness.scores import scores_by_task
from linrec.evals.harness.task_loading import load_tasks
from linrec.evals.harness.tasks import recall

TASKS = ["linrec_mqar", "linrec_needle", "linrec_phonebook", "linrec_copy"]


class Reader(LM):
    """Answers from the context alone; ``blind`` models answer with the first thing of the right kind."""

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind

    def loglikelihood(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        found = []
        for context, continuation in (r.args for r in requests):
            table = dict(line.split(" ") for line in context.split("\n")[:-1])
            value = next(iter(table.values())) if self.blind else table[context.split("\n")[-1]]
            assert continuation.startswith(" ")
            found.append((-0.5, value == continuation[1:]))
        return found

    def generate_until(self, requests: list[Any], **kwargs: Any) -> list[str]:
        return [" " + self._answer(r.args[0]) for r in requests]

    def _answer(self, context: str) -> str:
        if context.endswith("Copy:"):
            text = context.removeprefix("Text: ").removesuffix("\nCopy:")
            return text[: len(text) // 2] if self.blind else text
        key = context.split("\n")[-1].removesuffix(" is").split(" ")[-1]
        pattern = r"\d{3}-\d{4}|\d{7}" if self.blind else rf"{re.escape(key)}(?: is)? (\d[\d-]+)"
        found = re.search(pattern, context)
        assert found
        return found.group(0 if self.blind else 1)

    def loglikelihood_rolling(self, requests: list[Any], **kwargs: Any) -> list[float]:
        raise NotImplementedError


def scores(lm: LM, metadata: dict[str, Any]) -> dict[str, dict[str, Any]]:
    manager, loaded = load_tasks(TASKS, metadata)
    results = simple_evaluate(model=lm, tasks=loaded, task_manager=manager, bootstrap_iters=0)
    assert results is not None
    return scores_by_task(results)


def test_a_reader_solves_them_and_a_blind_one_does_not() -> None:
    size = {
        "documents": 20,
        "pairs": 12,
        "queries": 3,
        "needle_lengths": [300, 600],
        "entries": 30,
        "seed": 3,
    }
    solved = scores(Reader(), {**size, "copy_lengths": [10, 200]})
    blind = scores(Reader(blind=True), {**size, "copy_lengths": [10, 200]})
    assert {name: row["acc"] for name, row in solved.items()} == dict.fromkeys(TASKS, 1.0)
    assert {name: row["samples"] for name, row in solved.items()} == dict.fromkeys(TASKS, 20) | {TASKS[0]: 60}
    assert all(solved["linrec_needle"][f"acc_depth_{d}"] == 1.0 for d in recall.DEPTHS)
    assert blind["linrec_mqar"]["acc"] < 0.3 > blind["linrec_phonebook"]["acc"]
    assert (blind["linrec_copy"]["acc"], blind["linrec_copy"]["begun"]) == (0.0, 0.5)
    assert solved["linrec_mqar"]["nats"] == 0.5


@pytest.mark.parametrize("name", ["mqar", "needle", "phonebook", "copy"])
def test_they_are_seeded_and_do_not_repeat(name: str) -> None:
    build = getattr(recall, f"build_{name}")
    rows = build(documents=12)["test"].to_list()
    assert rows == build(documents=12, unrelated=1)["test"].to_list()
    assert rows != build(documents=12, seed=1)["test"].to_list()
    assert len({row["context"] for row in rows}) == len(rows)
    assert all(row["context"].isascii() for row in rows)


def test_needles_stand_where_they_are_said_to_in_filler_of_the_length() -> None:
    rows = recall.build_needle(documents=20, needle_lengths=(400, 2000))["test"].to_list()
    assert Counter((r["depth"], r["length"]) for r in rows) == {
        (depth, length): 2 for depth in recall.DEPTHS for length in (400, 2000)
    }
    for row in rows:
        assert 0 <= row["length"] - len(row["context"]) < 80
        filler = row["context"].split("\nQuestion")[0]
        place = filler.index("The number of") / (
            len(filler) - len(f"The number of zzzzzz is {row['answer']}.")
        )
        # the needle stands between two sentences, of up to 60 characters each
        assert abs(place - row["depth"] / 100) < 70 / row["length"]
        assert filler.count(row["answer"]) == 1


def test_pairs_of_a_document_share_their_beginning() -> None:
    rows = recall.build_mqar(documents=3, pairs=5, queries=5)["test"].to_list()
    for start in range(0, 15, 5):
        document = rows[start : start + 5]
        table = dict(line.split(" ") for line in document[0]["context"].split("\n")[:-1])
        assert len(table) == 5 and len({*table, *table.values()}) == 10
        assert {r["answer"] for r in document} == set(table.values())
        for earlier, later in itertools.pairwise(document):
            assert later["context"].startswith(f"{earlier['context']} {earlier['answer']}\n")


@pytest.mark.parametrize(
    ("task", "metadata"),
    [
        ("linrec_mqar", {"pairs": 4, "queries": 5}),
        ("linrec_needle", {"needle_lengths": [100]}),
        ("linrec_phonebook", {"entries": 2}),
        ("linrec_copy", {"copy_lengths": [256]}),
        ("linrec_copy", {"documents": 0}),
    ],
)
def test_sizes_that_do_not_fit_are_refused(task: str, metadata: dict[str, Any]) -> None:
    with pytest.raises(LinrecError) as raised:
        load_tasks([task], metadata)
    assert isinstance(raised.value, ConfigError) and "expected" in str(raised.value)
