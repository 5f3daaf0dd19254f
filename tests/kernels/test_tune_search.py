"""The search for a launch: what is kept, refused, and may stand in a file. Times are handed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from linrec.errors import BackendError
from linrec.evals.kernels.tune import SPACES, Lost, candidates, search
from linrec.kernels.matrix.launch_file import listed, read
from linrec.kernels.matrix.launch_table import CHUNK, LAUNCHES, Launch
from tests.kernels.tuning import SCAN, written

OLD, FAST, SLOW = Launch(0, 16, 4, 1), Launch(0, 32, 4, 2), Launch(0, 64, 8, 3)


def accepting(one: Any) -> None:
    pass


def times(found: dict[Any, Any]) -> Any:
    def measure(one: Any) -> float:
        if isinstance(found[one], Exception):
            raise found[one]
        return found[one]

    return measure


def test_the_fastest_is_kept() -> None:
    found = search(OLD, [SLOW, OLD, FAST], times({OLD: 2.0, FAST: 1.0, SLOW: 3.0}), accepting)
    assert (found.best, found.before, found.after, found.refused) == (FAST, 2.0, 1.0, {})


def test_the_current_one_stays_where_nothing_is_clearly_faster() -> None:
    found = search(OLD, [FAST, SLOW], times({OLD: 2.0, FAST: 1.99, SLOW: 3.0}), accepting)
    assert (found.best, found.before, found.after) == (OLD, 2.0, 2.0)


def test_a_candidate_that_was_fast_once_only_is_not_kept() -> None:
    taken: dict[Any, Any] = {OLD: iter([2.0, 2.0, 2.0]), FAST: iter([1.0, 2.1]), SLOW: iter([1.5, 1.6])}
    found = search(OLD, [FAST, SLOW], lambda one: next(taken[one]), accepting)
    assert (found.best, found.before, found.after) == (SLOW, 2.0, 1.6)


def test_candidates_that_fail_are_refused_with_the_reason() -> None:
    broken = {OLD: 2.0, FAST: RuntimeError("%0 = some code\nout of shared memory\n"), SLOW: 1.5}
    found = search(OLD, [FAST, SLOW], times(broken), accepting)
    assert found.best == SLOW and found.refused == {FAST: "RuntimeError: out of shared memory"}


def test_what_works_stands_in_for_what_does_not() -> None:
    found = search(OLD, [SLOW], times({OLD: RuntimeError("does not fit"), SLOW: 5.0}), accepting)
    assert (found.best, found.before, found.after) == (SLOW, None, 5.0) and OLD in found.refused
    nothing = search(OLD, [], times({OLD: RuntimeError("does not fit")}), accepting)
    assert (nothing.best, nothing.before, nothing.after) == (OLD, None, None)


def test_another_shape_can_refuse_the_fastest() -> None:
    def confirm(one: Any) -> None:
        if one == FAST:
            raise BackendError("the result is off")

    found = search(OLD, [FAST, SLOW], times({OLD: 2.0, FAST: 1.0, SLOW: 1.5}), confirm)
    assert found.best == SLOW and found.refused == {FAST: "BackendError: the result is off"}


def test_a_lost_gpu_ends_the_search() -> None:
    with pytest.raises(Lost):
        search(OLD, [FAST], times({OLD: 2.0, FAST: Lost("gone")}), accepting)


def test_every_stage_has_candidates_that_a_file_may_hold(tmp_path: Path) -> None:
    assert SPACES.keys() == LAUNCHES.keys()
    for stage in (*SPACES, CHUNK):
        at = SCAN._replace(stage=stage, width=64)
        tried = candidates(at)
        assert len(tried) == len(set(tried)) > 2
        assert stage == CHUNK or all(max(one[:2]) <= 64 for one in tried)  # type: ignore[index]
        for one in tried:
            assert read(written(tmp_path / "rows.json", *listed({at: one}))) == {at: one}
