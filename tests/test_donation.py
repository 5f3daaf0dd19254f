"""A state is written over by the one call that was given it: not by other threads, tasks, hooks or views of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from linrec import models, rules
from linrec.donation import donation
from linrec.errors import RangeError
from linrec.rule import validating, validation
from linrec.state import map_tensors, named_tensors
from linrec.stream import Session
from linrec.testing import example_inputs

PATTERN = ("gated_delta_net", "mamba2", "kimi_delta_attention")


@pytest.fixture(scope="module")
def model() -> models.LanguageModel:
    torch.manual_seed(0)
    config = models.Config(vocab_size=31, d_model=16, num_heads=2, init_std=0.3, pattern=PATTERN)
    return models.LanguageModel(config).eval()


def continued(session: Session, tokens: list[int]) -> Tensor:
    for token in tokens:
        session.feed(token)
    return session.next_logits


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """All at the same moment."""
    barrier = threading.Barrier(count)

    def waiting(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(waiting, range(count)))


def assert_kept(model: models.LanguageModel) -> None:
    """A call outside of any donation leaves the state it is given alone."""
    state = model.prefill(torch.arange(5)[None]).state
    before = map_tensors(torch.clone, state)
    with torch.no_grad():
        model.step(torch.tensor([[3]]), state)
    for (name, x), (_, y) in zip(named_tensors(state), named_tensors(before), strict=True):
        assert torch.equal(x, y), name


def test_forks_in_threads_are_the_forks_one_after_another(model: models.LanguageModel) -> None:
    base = Session(model).feed(list(range(9)))
    tokens = [[(3 * n + t) % 31 for t in range(12)] for n in range(4)]
    want = [continued(base.fork(), row) for row in tokens]
    for _ in range(6):
        for got, expected in zip(
            in_threads(4, lambda n: continued(base.fork(), tokens[n])), want, strict=True
        ):
            assert torch.equal(got, expected)
    assert all(torch.equal(continued(base.fork(), row), x) for row, x in zip(tokens, want, strict=True))
    assert_kept(model)


def test_one_session_fed_by_many_threads_reads_whole_tokens(model: models.LanguageModel) -> None:
    session = Session(model).feed([1, 2])
    in_threads(4, lambda n: [session.feed(7) for _ in range(5)])
    want = model(torch.tensor([[1, 2] + 20 * [7]])).logits[0, -1]
    torch.testing.assert_close(session.next_logits, want, rtol=1e-4, atol=1e-4)


def test_what_one_thread_or_task_gives_away_no_other_does(model: models.LanguageModel) -> None:
    with donation(), validation():
        assert validating()
        in_threads(2, lambda n: assert_kept(model))
        assert not any(in_threads(2, lambda n: validating()))
    assert_kept(model)


def test_tasks_that_take_turns(model: models.LanguageModel) -> None:
    base = Session(model).feed(list(range(6)))
    tokens = [4, 9, 2, 7]
    want = continued(base.fork(), tokens)

    async def streams() -> Tensor:
        session = base.fork()
        for token in tokens:
            session.feed(token)
            await asyncio.sleep(0)
        return session.next_logits

    async def holds() -> None:
        for _ in range(len(tokens)):
            assert_kept(model)
            await asyncio.sleep(0)

    async def gives_everything() -> None:
        state = model.prefill(torch.arange(4)[None]).state
        with donation(), torch.no_grad():
            for _ in range(len(tokens)):
                state = model.step(torch.tensor([[1]]), state).state
                await asyncio.sleep(0)

    async def all_at_once() -> tuple[Any, ...]:
        return await asyncio.gather(streams(), holds(), gives_everything(), streams())

    first, _, _, second = asyncio.run(all_at_once())
    assert torch.equal(first, want) and torch.equal(second, want)
    assert_kept(model)


def test_a_hook_that_steps_from_a_state_it_holds(model: models.LanguageModel) -> None:
    held = model.prefill(torch.arange(5)[None]).state
    before = map_tensors(torch.clone, held)

    def look_ahead(*_: Any) -> None:
        handle.remove()
        model.step(torch.tensor([[3]]), held)

    session = Session(model).feed(list(range(5))).feed(1)
    handle = model.blocks[0].register_forward_hook(look_ahead)
    session.feed(2)
    for (name, x), (_, y) in zip(named_tensors(held), named_tensors(before), strict=True):
        assert torch.equal(x, y), name


def test_an_error_inside_a_block_ends_it(model: models.LanguageModel) -> None:
    with pytest.raises(RangeError), donation(), validation():
        model(torch.tensor([[31]]))
    assert not validating()
    assert_kept(model)


class Twins(NamedTuple):
    first: Any
    second: Any


class Output(NamedTuple):
    logits: Tensor
    state: Any


class OneRule:
    """A model of one rule whose state is handed out in awkward ways."""

    def __init__(self, arrange: Callable[[Tensor], Any]):
        self.arrange = arrange
        self.start = torch.randn(1, 2, 4, 3, generator=torch.Generator().manual_seed(5))
        self.rule = rules.gated_delta_net
        self.inputs = example_inputs(self.rule, B=1, T=32, H=2, HV=2, K=4, V=3, dtype=torch.float32)

    def init_state(self, batch_size: int = 1) -> Any:
        return self.arrange(self.start)

    def prefill(self, tokens: Tensor, state: Any = None) -> Output:
        for t in range(tokens.shape[1]):
            logits, state = self.step(tokens[:, t : t + 1], state)
        return Output(logits, self.arrange(state.first))

    def step(self, tokens: Tensor, state: Any) -> Output:
        t = int(tokens)
        token = {name: x[:, t : t + 1] for name, x in self.inputs.items()}
        (o, first), (o2, second) = (self.rule.step(**token, state=s) for s in state)
        return Output(torch.cat([o.flatten(), o2.flatten()])[None, None], Twins(first, second))

    def fingerprint(self) -> str:
        return "one rule"


ARRANGED = {
    "the same tensor twice": lambda x: Twins(x, x),
    "two views of one tensor": lambda x: Twins(x, x.view_as(x)),
    "overlapping views": lambda x: Twins(
        *torch.cat([x.flatten(), x.flatten()[:1]]).unfold(0, 24, 1).view(2, 1, 2, 4, 3)
    ),
    "expanded": lambda x: Twins(x[:, :1].expand(-1, 2, -1, -1), x.clone()),
    "transposed": lambda x: Twins(x.mT.contiguous().mT, x.clone()),
    "a part of more": lambda x: Twins(torch.cat([x, x])[:1], x.clone()),
}


@pytest.mark.parametrize("arranged", ARRANGED)
@pytest.mark.parametrize("prompt", [1, 3])
def test_states_that_share_memory_are_never_written_over(arranged: str, prompt: int) -> None:
    one = OneRule(ARRANGED[arranged])
    start = one.start.clone()
    ids = list(range(8))
    with torch.no_grad():
        state = map_tensors(torch.clone, one.init_state())
        for t in ids:
            if t == prompt and prompt > 1:
                state = map_tensors(torch.clone, one.arrange(state.first))
            logits, state = one.step(torch.tensor([[t]]), state)
    session = Session(one).feed(ids[:prompt])
    torch.testing.assert_close(continued(session, ids[prompt:]), logits[0, -1])
    assert torch.equal(one.start, start)


def test_a_session_begun_in_inference_mode_goes_on_outside(model: models.LanguageModel) -> None:
    with torch.inference_mode():
        session = Session(model).feed([1, 2, 3]).feed(4)
    want = model(torch.tensor([[1, 2, 3, 4, 5, 6]])).logits[0, -1]
    torch.testing.assert_close(continued(session, [5, 6]), want, rtol=1e-4, atol=1e-4)
