"""Streaming sessions: the same logits as one pass, forks, files, and memory that does not grow."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from linrec import models
from linrec.errors import CheckpointError, DtypeError, RangeError, ShapeError
from linrec.layers import LAYERS
from linrec.state import named_tensors
from linrec.stream import Session

PATTERN = ("gated_delta_net", "softmax_attention", "mamba2")


def build(*pattern: str, seed: int = 0, d_model: int = 32) -> models.LanguageModel:
    torch.manual_seed(seed)
    config = models.Config(
        vocab_size=97, d_model=d_model, num_heads=2, init_std=0.3, pattern=pattern or PATTERN
    )
    return models.LanguageModel(config).eval()


@pytest.fixture(scope="module")
def model() -> models.LanguageModel:
    return build()


@torch.no_grad()
def test_feeding_in_pieces_equals_one_pass(model: models.LanguageModel) -> None:
    ids = torch.randint(0, 97, (30,))
    session = Session(model).feed(ids[:11]).feed(int(ids[11])).feed([]).feed(ids[None, 12:20])
    session.feed(ids[20:].tolist())
    torch.testing.assert_close(session.next_logits, model(ids[None]).logits[0, -1], rtol=1e-3, atol=1e-3)


def test_stream_is_the_greedy_loop_and_can_be_taken_up_again(model: models.LanguageModel) -> None:
    session = Session(model)
    tokens = list(session.stream([5, 6, 7], 6, temperature=0))
    tokens += list(session.stream(max_tokens=4, temperature=0))
    ids = [5, 6, 7]
    with torch.no_grad():
        for _ in range(10):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert tokens == ids[3:]
    again = Session(model)
    for token in again.stream([5, 6, 7], temperature=0):
        if token == tokens[2]:
            break
    assert next(again.stream(temperature=0)) == tokens[tokens.index(tokens[2]) + 1]


def test_stop_tokens_are_neither_yielded_nor_fed(model: models.LanguageModel) -> None:
    tokens = list(Session(model).stream([5, 6, 7], 8, temperature=0))
    end = tokens[4]
    session = Session(model)
    got = list(session.stream([5, 6, 7], stop={end}, temperature=0))
    assert got == tokens[: tokens.index(end)]
    assert session.sample(temperature=0) == end


def test_sampling_restrictions(model: models.LanguageModel) -> None:
    session = Session(model, seed=1).feed([1, 2, 3])
    order = session.next_logits.argsort(descending=True).tolist()
    assert {session.sample(temperature=5.0, top_k=3) for _ in range(80)} == set(order[:3])
    assert {session.sample(top_p=1e-6) for _ in range(20)} == {order[0]}
    assert len({session.sample(temperature=50.0) for _ in range(80)}) > 20
    assert session.sample(top_k=10_000) in order
    p = (session.next_logits / 4).softmax(-1)
    nucleus = [t for t in order if p[p > p[t]].sum() < 0.5]
    assert {session.sample(temperature=4.0, top_p=0.5) for _ in range(400)} <= set(nucleus)


def test_frequencies_are_the_probabilities(model: models.LanguageModel) -> None:
    session = Session(model, seed=3).feed([1, 2, 3])
    counts = torch.zeros(97)
    for _ in range(3000):
        counts[session.sample(temperature=3.0)] += 1
    expected = (session.next_logits / 3.0).softmax(-1)
    # The standard deviation of a frequency is at most 0.5 / sqrt(3000) = 0.009.
    assert (counts / 3000 - expected).abs().max() < 0.045


def test_seeds(model: models.LanguageModel) -> None:
    draws = [list(Session(model).stream([1], 12, temperature=3.0, seed=s)) for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert list(Session(model, seed=1).stream([1], 12, temperature=3.0)) == draws[0]
    session = Session(model).feed([1])
    assert session.sample(temperature=9.0, seed=4) == session.sample(temperature=9.0, seed=4)


def test_a_fork_goes_its_own_way_and_shares_its_state(model: models.LanguageModel) -> None:
    session = Session(model, seed=7).feed([1, 2, 3])
    fork = session.fork()
    assert [t.data_ptr() for _, t in named_tensors(fork.state)] == [
        t.data_ptr() for _, t in named_tensors(session.state)
    ]
    expected = list(session.fork().stream(max_tokens=10, temperature=3.0))
    fork.feed([9, 9, 9])
    assert list(session.stream(max_tokens=10, temperature=3.0)) == expected
    assert not torch.equal(fork.next_logits, session.next_logits)


@pytest.mark.parametrize("fed", [[], [1, 2, 3]])
def test_save_and_restore(model: models.LanguageModel, tmp_path: Path, fed: list[int]) -> None:
    session = Session(model, seed=7).feed(fed)
    session.save(tmp_path / "s.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]
    again = Session(build()).restore(tmp_path / "s.safetensors")
    assert type(again.state) is type(session.state)
    runs = [list(s.stream([4], 12, temperature=3.0)) for s in (session, again)]
    assert runs[0] == runs[1]


def change_a_value(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))


def change_metadata(**changes: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = {**file.metadata(), **changes}
        save_file(tensors, path, metadata=metadata)

    return apply


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: p.unlink(), "no such file"),
    "empty": (lambda p: p.write_bytes(b""), "truncated"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-50]), "truncated"),
    "not safetensors": (lambda p: p.write_bytes(b"hello" * 100), "not a safetensors file"),
    "value changed": (change_a_value, "damaged"),
    "metadata changed": (change_metadata(model="0" * 64), "damaged"),
    "other version": (change_metadata(version="2"), "version 1, got '2'"),
    "other format": (lambda p: save_file({"x": torch.zeros(2)}, p), "session file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_session_stays(
    model: models.LanguageModel, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "s.safetensors"
    session = Session(model).feed([1, 2, 3])
    session.save(path)
    damage, message = DAMAGE[kind]
    damage(path)
    before = session.next_logits.clone()
    with pytest.raises(CheckpointError, match=message):
        session.restore(path)
    assert torch.equal(session.next_logits, before)


def test_a_session_of_another_model(model: models.LanguageModel, tmp_path: Path) -> None:
    Session(model).feed([1]).save(tmp_path / "s")
    for other in (build(seed=1), build("gla")):
        with pytest.raises(CheckpointError, match="belongs to another model"):
            Session(other).restore(tmp_path / "s")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.next_logits, ShapeError),
        (lambda s: s.sample(), ShapeError),
        (lambda s: s.feed([0.5]), DtypeError),
        (lambda s: s.feed("text"), DtypeError),
        (lambda s: s.feed(torch.zeros(2, 3, dtype=torch.long)), ShapeError),
        (lambda s: s.feed([97]), RangeError),
        (lambda s: s.feed([1]).sample(temperature=-1), RangeError),
        (lambda s: s.feed([1]).sample(top_k=0), RangeError),
        (lambda s: s.feed([1]).sample(top_p=0), RangeError),
        (lambda s: next(s.stream([1], -1)), RangeError),
    ],
)
def test_bad_input(
    model: models.LanguageModel, call: Callable[[Session], Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match="expected"):
        call(Session(model))


def live_tensors() -> tuple[int, int]:
    """How many tensors exist in this process, and the bytes they hold."""
    gc.collect()
    # Asking for the type leaves alone the deprecated objects of torch that warn when asked for their class.
    tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    return len(tensors), sum(t.untyped_storage().nbytes() for t in tensors)


def test_memory_is_constant_over_100_000_tokens() -> None:
    session = Session(build("gated_delta_net", "mamba2", d_model=16))
    stream = torch.randint(0, 97, (100_000,))
    sizes = {}
    for end in (1_000, 100_000):
        start = 0 if end == 1_000 else 1_000
        for first in range(start, end - 200, 9_900):
            session.feed(stream[first : min(first + 9_900, end - 200)])
        for token in stream[end - 200 : end].tolist():
            session.feed(token)
        sizes[end] = (session.state_bytes, *live_tensors())
    assert sizes[1_000] == sizes[100_000]
    assert torch.isfinite(session.next_logits).all()


def test_a_state_keeps_no_activations_alive() -> None:
    session = Session(build()).feed(torch.randint(0, 97, (3_000,)))
    for name, tensor in [*named_tensors(session.state), ("logits", session.next_logits)]:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


def test_a_kv_cache_grows() -> None:
    session = Session(build("softmax_attention"))
    sizes = [session.feed(torch.randint(0, 97, (100,))).state_bytes for _ in range(3)]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("layer", ["gated_delta_net", "mamba2", "rwkv6", "rwkv7", "comba"])
def test_only_a_state_that_nobody_holds_is_written_over(layer: str) -> None:
    model = build(layer)
    session = Session(model).feed([1, 2, 3])
    other, held = session.fork(), session.state
    before = {name: x.clone() for name, x in named_tensors(held)}
    session.feed(4)
    assert all(torch.equal(x, before[name]) for name, x in named_tensors(held))
    place = {name: x.data_ptr() for name, x in named_tensors(session._state)}
    session.feed(5)
    assert any(x.data_ptr() == place[name] for name, x in named_tensors(session._state))
    other.feed(4).feed(5)
    torch.testing.assert_close(session.next_logits, other.next_logits)
    torch.testing.assert_close(session.next_logits, model(torch.tensor([[1, 2, 3, 4, 5]])).logits[0, -1])


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_streams_forks_saves_and_restores(layer: str, tmp_path: Path) -> None:
    """Prompts of several lengths, then one token at a time, against one pass in float64."""
    torch.manual_seed(0)
    config = models.Config(
        vocab_size=31, d_model=16, num_heads=2, init_std=0.3, pattern=(layer,), num_layers=2
    )
    model = models.LanguageModel(config).double().eval()
    ids = torch.randint(0, 31, (12,))
    with torch.no_grad():
        want = model(ids[None]).logits[0]
    for length in (1, 2, 5, 8):
        session = Session(model, seed=3).feed(ids[:length])
        for t in range(length, 9):
            session.feed(int(ids[t]))
        fork = session.fork()
        session.feed(int(ids[9]))
        session.save(tmp_path / "saved")
        restored = Session(model).restore(tmp_path / "saved")
        for part in (session, restored):
            part.feed(int(ids[10])).feed(int(ids[11]))
        for part in (session, restored, fork.feed(ids[9:10]).feed(ids[10:])):
            torch.testing.assert_close(part.next_logits, want[-1], rtol=1e-7, atol=1e-7)
        assert restored.sample(seed=None) == session.sample(seed=None)
