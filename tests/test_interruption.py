"""A session that is interrupted is as it was, or says that it cannot go on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import linrec
from linrec import models
from linrec.errors import CheckpointError, RangeError, SessionError
from linrec.state import map_tensors, named_tensors
from linrec.stream import Session

HOUSE = os.path.dirname(os.path.abspath(linrec.__file__))
KIT = tuple(
    os.path.join(os.path.realpath(os.path.join(HOUSE, name)), "") for name in (".", "models", "kernels")
)
PATTERN = ("gated_delta_net", "softmax_attention", "log_linear_gated_delta", "rwkv7")
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def model() -> models.LanguageModel:
    torch.manual_seed(0)
    config = models.Config(vocab_size=31, d_model=16, num_heads=2, init_std=0.3, pattern=PATTERN)
    return models.LanguageModel(config).eval()


@pytest.fixture(scope="module")
def want(model: models.LanguageModel) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


class Interruption:
    """KeyboardInterrupt at the n-th line that the kit executes inside the block; none if it has fewer."""

    def __init__(self, at: int):
        self.left = at

    def __enter__(self) -> Interruption:
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        return self._line if os.path.realpath(frame.f_code.co_filename).startswith(KIT) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self._line


def lines_of(work: Callable[[], Any]) -> int:
    with Interruption(10**9) as counted:
        work()
    return 10**9 - counted.left


def snapshot(session: Session) -> tuple[dict[str, Tensor], Tensor]:
    """Without asking for ``state``, which would make the session give up its ownership."""
    tensors = {name: x.clone() for name, x in named_tensors(session._state)}
    return tensors, session._generator.get_state()


def assert_same(session: Session, before: tuple[dict[str, Tensor], Tensor]) -> None:
    tensors, generator = snapshot(session)
    assert torch.equal(generator, before[1])
    for name, x in tensors.items():
        assert torch.equal(x, before[0][name]), name


CALLS = {"one token": IDS[4:5], "several": IDS[4:]}


@pytest.mark.slow
@pytest.mark.parametrize("owned", [True, False], ids=["owned", "shared"])
@pytest.mark.parametrize("call", CALLS)
def test_at_any_line_of_feed(model: models.LanguageModel, want: Tensor, call: str, owned: bool) -> None:
    tokens, outcomes = CALLS[call], set()

    def ready() -> Session:
        session = Session(model, seed=1).feed(IDS[:3]).feed(IDS[3])
        return session if owned else session.fork()

    ready().feed(tokens)  # what is remembered from call to call is there
    counted = ready()
    total = lines_of(lambda: counted.feed(tokens))
    for at in [*range(1, total, max(1, total // 60)), *range(total - 5, total + 1)]:
        session = ready()
        before = snapshot(session)
        with pytest.raises(KeyboardInterrupt), Interruption(at):
            session.feed(tokens)
        assert torch.is_grad_enabled() and not session._lock._is_owned()  # type: ignore[attr-defined]
        try:
            session.next_logits  # noqa: B018
        except SessionError:
            outcomes.add("cannot go on")
            for refused in (
                session.fork,
                lambda s=session: s.feed(1),
                session.sample,
                lambda s=session: s.state,
            ):
                with pytest.raises(SessionError, match="cannot go on"):
                    refused()
            continue
        outcomes.add("as it was")
        assert_same(session, before)
        session.feed(tokens)
        torch.testing.assert_close(session.next_logits, want[3 + len(tokens)], rtol=1e-4, atol=1e-4)
    assert outcomes == ({"as it was", "cannot go on"} if owned and len(tokens) == 1 else {"as it was"})


@pytest.mark.parametrize("tokens", [31, -1, [1, 99]])
def test_refused_tokens_change_nothing(model: models.LanguageModel, want: Tensor, tokens: Any) -> None:
    session = Session(model).feed(IDS[:3]).feed(IDS[3])
    with pytest.raises(RangeError):
        session.feed(tokens)
    session.feed(IDS[4]).feed(IDS[5:])
    torch.testing.assert_close(session.next_logits, want[-1], rtol=1e-4, atol=1e-4)


def test_an_exception_of_a_layer_after_others_have_written(
    model: models.LanguageModel, want: Tensor, tmp_path: Path
) -> None:
    session = Session(model).feed(IDS[:3]).feed(IDS[3])
    session.save(tmp_path / "saved")
    kept, held = session.fork(), session.state
    copies = map_tensors(torch.clone, held)
    session.feed(IDS[4])  # from here on it owns its state

    def failing(*_: Any) -> None:
        raise ZeroDivisionError

    handle = model.blocks[3].register_forward_hook(failing)
    try:
        with pytest.raises(ZeroDivisionError):
            session.feed(IDS[5])
        with pytest.raises(ZeroDivisionError):
            kept.feed(IDS[4])
    finally:
        handle.remove()
    with pytest.raises(SessionError, match="restore"):
        session.save(tmp_path / "broken")
    assert issubclass(SessionError, CheckpointError) and not (tmp_path / "broken").exists()
    for (name, x), (_, y) in zip(named_tensors(held), named_tensors(copies), strict=True):
        assert torch.equal(x, y), name
    kept.feed(IDS[4:])
    for again in (session.restore(tmp_path / "saved").feed(IDS[4:]), kept):
        torch.testing.assert_close(again.next_logits, want[-1], rtol=1e-4, atol=1e-4)
    session.state = held
    session.feed(IDS[4:])
    torch.testing.assert_close(session.next_logits, want[-1], rtol=1e-4, atol=1e-4)


def test_a_stream_that_is_interrupted_draws_the_same_token_again(model: models.LanguageModel) -> None:
    def streamed(session: Session, count: int) -> list[int]:
        return list(session.stream(max_tokens=count, temperature=1.5))

    expected = streamed(Session(model, seed=7).feed(IDS), 12)
    session = Session(model, seed=7).feed(IDS)
    got = streamed(session, 5)
    for at in (5, 30, 60):  # before the state is written over
        with pytest.raises(KeyboardInterrupt), Interruption(at):
            streamed(session, 1)
    assert got + streamed(session, 7) == expected


def test_a_refused_file_leaves_a_session_as_it_was(
    model: models.LanguageModel, want: Tensor, tmp_path: Path
) -> None:
    session = Session(model, seed=1).feed(IDS[:4])
    before = snapshot(session)
    (tmp_path / "broken").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError):
        session.restore(tmp_path / "broken")
    assert_same(session, before)
    session.feed(IDS[4:])
    torch.testing.assert_close(session.next_logits, want[-1], rtol=1e-4, atol=1e-4)
