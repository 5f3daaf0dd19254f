"""A choice between calls is timed once, keeps to the plain call unless another is clearly faster, and is not seen."""

import threading

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from linrec.engines.numerics import choices
from linrec.engines.numerics.choices import GAIN, LEAST, MOST, chosen, measurable


class Clock:
    """Time that passes only where a work says so: on the clock, and of the processor."""

    def __init__(self):
        self.clock = self.processor = 0.0

    def perf_counter(self):
        return self.clock

    def thread_time(self):
        return self.processor

    def work(self, seconds, busy=()):
        """A work of so many seconds; others' work adds to the clock in the rounds that ``busy`` names."""
        calls = iter(range(1000))

        def run():
            self.processor += seconds
            self.clock += seconds + (1.0 if next(calls) in busy else 0.0)

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(choices, "time", clock)
    monkeypatch.setattr(choices, "_made", {})
    return clock


@pytest.mark.parametrize("faster", [0.5, 1.0, 1.04, GAIN - 0.01, GAIN + 0.01, 3.0])
def test_another_call_is_taken_where_it_is_clearly_faster(clock, faster):
    works = {"plain": clock.work(0.001 * faster), "other": clock.work(0.001)}
    assert chosen("a product", (faster,), lambda: works) == ("other" if faster > GAIN else "plain")


def test_the_fastest_of_several(clock):
    works = {name: clock.work(s) for name, s in (("plain", 0.004), ("a", 0.002), ("b", 0.001), ("c", 0.003))}
    assert chosen("a product", (), lambda: works) == "b"


@pytest.mark.parametrize("busy", [{2}, {1, 2, 3}, set(range(LEAST))])
def test_a_busy_machine_does_not_make_the_plain_call_look_slow(clock, busy):
    works = {"plain": clock.work(0.001, busy), "other": clock.work(0.001)}
    assert chosen("a product", (), lambda: works) == "plain"


def test_timed_once_within_its_time(clock):
    made = []

    def works():
        made.append({"plain": clock.work(0.0005), "other": clock.work(0.002)})
        return made[-1]

    assert [chosen("a product", (3, 4), works) for _ in range(3)] == ["plain"] * 3
    assert len(made) == 1 and clock.clock < 0.03
    assert chosen("a product", (3, 5), None) is None
    (choice,) = choices.choices()
    assert choice.what == f"a product, 3, 4, {torch.get_num_threads()} thread" + "s" * (
        torch.get_num_threads() > 1
    )
    assert str(choice) == "plain (plain 0.5 ms, other 2 ms)"
    slow = {"plain": clock.work(1.0)}
    chosen("a slow one", (), lambda: slow)
    assert clock.clock < 1 + LEAST + 0.1
    assert MOST > LEAST


def test_threads_that_ask_at_once_time_once(monkeypatch):
    monkeypatch.setattr(choices, "_made", {})
    made, barrier, found = [], threading.Barrier(8), []

    def works():
        made.append(1)
        return {"plain": lambda: None, "other": lambda: None}

    def ask():
        barrier.wait()
        found.append(chosen("a product", (), works))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(set(found)) == 1


def test_random_numbers_stay(monkeypatch):
    from linrec.engines.numerics.linear import best_product

    monkeypatch.setattr(choices, "_made", {})
    before = torch.get_rng_state()
    assert best_product(8, 16, torch.float64) is not None
    assert torch.equal(torch.get_rng_state(), before)


def never():
    raise AssertionError("timed where it is seen")


def test_nothing_is_timed_where_it_would_be_seen(monkeypatch):
    monkeypatch.setattr(choices, "_made", {})
    assert measurable()
    with FakeTensorMode():
        assert chosen("a product", (), lambda: never()) is None
    with FlopCounterMode(display=False):
        assert chosen("a product", (), lambda: never()) is None
    with torch.device("meta"):
        assert chosen("a product", (), lambda: never()) is None
    torch.use_deterministic_algorithms(True)
    try:
        assert chosen("a product", (), lambda: never()) is None
    finally:
        torch.use_deterministic_algorithms(False)
    torch.func.vmap(lambda x: chosen("a product", (), lambda: never()) or x)(torch.ones(2))

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(x):
        return x + 1 if chosen("a product", (), lambda: never()) is None else x

    assert compiled(torch.ones(1)) == 2
    assert not choices.choices()
