"""Streaming sessions: a model, the state of one sequence, and the logits of its next token.

    session = Session(model)
    session.feed(prompt_ids)
    for token in session.stream(max_tokens=100, temperature=0.8):
        ...

A session works with any model that has ``prefill``, ``step``, ``init_state`` and ``fingerprint``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from linrec.errors import DtypeError, RangeError, ShapeError
from linrec.rule import donation
from linrec.session_file import read_session, write_session
from linrec.state import State, named_tensors, state_bytes


class StreamModel(Protocol):
    """What a session asks of a model; ``linrec.models.LanguageModel`` has it."""

    def prefill(self, tokens: Tensor, state: Any = None) -> Any: ...
    def step(self, tokens: Tensor, state: Any) -> Any: ...
    def init_state(self, batch_size: int = 1) -> Any: ...
    def fingerprint(self) -> str: ...


class Session:
    """One sequence being read and written.

    A state that anyone else may hold is never changed in place, so ``fork`` copies nothing, and with recurrent
    layers a session takes the same memory after any number of tokens. ``seed`` starts the session's own random
    numbers, which ``sample`` and ``stream`` draw from and which ``fork`` and ``save`` take along; None takes one from
    the system.
    """

    def __init__(self, model: StreamModel, state: State = None, *, seed: int | None = None):
        self.model = model
        self._state: State = model.init_state(1) if state is None else state
        self._owned = state is None  # nobody else has seen it, so a step may write over it
        self._device = _device_of(self._state)
        self._logits: Tensor | None = None
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    @property
    def state(self) -> State:
        """The state after the last token fed; it stays as it is, whatever is fed afterwards."""
        self._owned = False
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state, self._owned = state, False

    @property
    def next_logits(self) -> Tensor:
        """``[vocab_size]``: logits of the token after the last one fed. Raises ShapeError before any feed."""
        if self._logits is None:
            raise ShapeError("next_logits: expected at least one token fed to this session, got none")
        return self._logits

    @property
    def state_bytes(self) -> int:
        """Bytes of the state's tensors."""
        return state_bytes(self._state)

    @torch.no_grad()
    def feed(self, tokens: Sequence[int] | Tensor | int) -> Session:
        """Read tokens (an id, a sequence of ids or a tensor ``[T]``) and return the session."""
        ids = _as_row(tokens).to(self._device)
        if ids.shape[1] == 0:
            return self
        read = self.model.step if ids.shape[1] == 1 else self.model.prefill
        with donation(self._owned):
            output = read(ids, self._state)
        # A view would keep the logits of the whole chunk alive.
        self._logits, self._state, self._owned = output.logits[0, -1].clone(), output.state, True
        return self

    def sample(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> int:
        """Draw the next token without feeding it; temperature 0 takes the likeliest.

        ``top_k`` keeps the k likeliest tokens; of these ``top_p`` keeps the fewest that have that much of the
        probability. ``seed`` restarts the session's random numbers first. Raises RangeError for values
        outside their range.
        """
        _check_sampling(temperature, top_k, top_p)
        if seed is not None:
            self._generator.manual_seed(seed)
        logits = self.next_logits.float().cpu()
        if temperature == 0:
            return int(logits.argmax())
        probabilities = restrict(logits / temperature, top_k, top_p).softmax(-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def stream(
        self,
        prompt: Sequence[int] | Tensor | None = None,
        max_tokens: int | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: int | Collection[int] = (),
    ) -> Iterator[int]:
        """Feed ``prompt``, then yield sampled tokens, each already fed: a caller may stop and go on anywhere.

        Ends after ``max_tokens`` (None: never) or at a token of ``stop``, which is neither yielded nor fed.
        Bad arguments raise at the first token.
        """
        stops = {stop} if isinstance(stop, int) else set(stop)
        if max_tokens is not None and max_tokens < 0:
            raise RangeError(f"stream: expected max_tokens >= 0 or None, got {max_tokens}")
        _check_sampling(temperature, top_k, top_p)
        if prompt is not None:
            self.feed(prompt)
        if seed is not None:
            self._generator.manual_seed(seed)
        produced = 0
        while max_tokens is None or produced < max_tokens:
            token = self.sample(temperature, top_k, top_p)
            if token in stops:
                return
            self.feed(token)
            produced += 1
            yield token

    def fork(self) -> Session:
        """An independent session at the same place, random numbers included, in constant time."""
        other = object.__new__(type(self))
        other.model, other._device, other._logits = self.model, self._device, self._logits
        other._state, other._owned = self.state, False
        other._generator = torch.Generator()
        other._generator.set_state(self._generator.get_state())
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to one safetensors file, under a temporary name that is then renamed."""
        write_session(path, self.model.fingerprint(), self._state, self._logits, self._generator.get_state())

    def restore(self, path: str | os.PathLike[str]) -> Session:
        """Go on where a saved session stood, and return this one: ``Session(model).restore(path)``.

        Raises CheckpointError for a file of another model or version, a truncated or a damaged one; this
        session is then as it was.
        """
        saved = read_session(path, self.model.fingerprint(), self.model.init_state(1), self._device)
        self._generator.set_state(saved.rng)
        self._state, self._owned, self._logits = saved.state, True, saved.logits
        return self


def _device_of(state: State) -> torch.device:
    for _, tensor in named_tensors(state):
        return tensor.device
    return torch.device("cpu")


def _as_row(tokens: Sequence[int] | Tensor | int) -> Tensor:
    """``[1, T]`` int64; the model checks that the ids exist."""
    if isinstance(tokens, int):
        tokens = [tokens]
    try:
        ids = tokens if isinstance(tokens, Tensor) else torch.tensor(list(tokens))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"feed: expected token ids, got {type(tokens).__name__} ({error})") from error
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise DtypeError(f"feed: expected integer token ids, got {ids.dtype}")
    if ids.dim() == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.dim() != 1:
        raise ShapeError(f"feed: expected one sequence of ids, [T] or [1, T], got {list(ids.shape)}")
    return ids.long()[None]


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not 0 <= temperature < math.inf:
        raise RangeError(f"temperature: expected a finite number >= 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise RangeError(f"top_k: expected an integer >= 1 or None, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise RangeError(f"top_p: expected 0 < top_p <= 1 or None, got {top_p}")


def restrict(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """-inf for every token outside the nucleus; the likeliest token always stays."""
    values, order = logits.sort(descending=True, stable=True)
    keep = torch.ones_like(values, dtype=torch.bool)
    if top_k is not None:
        keep[top_k:] = False
    if top_p is not None:
        p = values.masked_fill(~keep, -math.inf).softmax(-1)
        keep &= p.cumsum(-1) - p < top_p
    return torch.full_like(logits, -math.inf).scatter(0, order, values.masked_fill(~keep, -math.inf))
