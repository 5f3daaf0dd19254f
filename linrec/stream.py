"""Streaming sessions: a model, the state of one sequence, and the logits of its next token.

    session = Session(model)
    session.feed(prompt_ids)
    for token in session.stream(max_tokens=100, temperature=0.8):
        ...

A session works with any model that has ``prefill``, ``step``, ``init_state`` and ``fingerprint``.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from linrec.donation import Donation, donation
from linrec.errors import RangeError, SessionError, ShapeError
from linrec.sampling import check_sampling, reseed, restrict
from linrec.session_file import read_session, write_session
from linrec.state import State, map_tensors, named_tensors, state_bytes
from linrec.stream_model import StreamModel as StreamModel
from linrec.stream_model import token_row


class _Place(NamedTuple):
    """Where a session stands. ``owned``: nobody else has seen the state, so a step may write over it."""

    state: State
    logits: Tensor | None
    owned: bool


class Session:
    """One sequence being read and written.

    A state that anyone else may hold is never changed in place, so ``fork`` copies nothing, and with recurrent
    layers a session takes the same memory after any number of tokens. ``seed`` starts the session's own random
    numbers, which ``sample`` and ``stream`` draw from and which ``fork`` and ``save`` take along; None takes one from
    the system.

    After an exception, also a KeyboardInterrupt, a session is as it was before the call. Where a step had already begun
    to write over the state it says so instead: everything but ``restore`` and setting ``state`` raises SessionError.
    Calls from several threads wait for each other.
    """

    def __init__(self, model: StreamModel, state: State = None, *, seed: int | None = None):
        self.model = model
        owned = state is None
        # A model's empty state may be a view of a parameter.
        state = map_tensors(_copied, model.init_state(1)) if state is None else state
        self._place: _Place | None = _Place(state, None, owned)
        self._lock = threading.RLock()
        self._device = _device_of(state)
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            reseed(self._generator, seed)

    @property
    def state(self) -> State:
        """The state after the last token fed; it stays as it is, whatever is fed afterwards."""
        return self._shared().state

    @state.setter
    def state(self, state: State) -> None:
        with self._lock:
            self._place = _Place(state, self._place and self._place.logits, owned=False)

    @property
    def next_logits(self) -> Tensor:
        """``[vocab_size]``: logits of the token after the last one fed. Raises ShapeError before any feed."""
        logits = self._standing().logits
        if logits is None:
            raise ShapeError("next_logits: expected at least one token fed to this session, got none")
        return logits

    @property
    def started(self) -> bool:
        """Whether anything has been fed."""
        return self._standing().logits is not None

    @property
    def state_bytes(self) -> int:
        """Bytes of the state's tensors."""
        return state_bytes(self._state)

    @property
    def _state(self) -> State:
        """The state to look at, not to hold."""
        return self._standing().state

    def feed(self, tokens: Sequence[int] | Tensor | int) -> Session:
        """Read tokens, an id, a sequence of ids or ``tokens [T]``, and return the session.

        .. code-block:: pycon

            >>> from linrec.models import Config, LanguageModel
            >>> model = LanguageModel(Config(d_model=16)).eval()  # reads bytes
            >>> session = Session(model).feed(b"for i in ")
            >>> session.next_logits.shape
            torch.Size([257])

            # the same in pieces of any size: ids, one id, a tensor
            >>> pieces = Session(model).feed([102, 111, 114]).feed(32).feed(torch.tensor([105, 32, 105, 110, 32]))
            >>> torch.allclose(pieces.next_logits, session.next_logits, atol=1e-5)
            True
        """
        ids = token_row(tokens).to(self._device)
        if ids.shape[1] == 0:
            return self
        read = self.model.step if ids.shape[1] == 1 else self.model.prefill
        place, after, gift, grads = None, None, Donation(), torch.is_grad_enabled()
        try:  # an interruption may come between any two lines, also of leaving a block
            with self._lock, torch.no_grad():
                place, self._place = self._standing(), None
                with donation(place.state if place.owned else False) as gift:
                    output = read(ids, place.state)
                # A view would keep the logits of the whole chunk alive.
                after = self._place = _Place(output.state, output.logits[0, -1].clone(), owned=True)
            return self
        except BaseException:
            torch.set_grad_enabled(grads)  # what interrupts the way out of a block leaves it as it is inside
            with contextlib.suppress(RuntimeError):  # it has been released
                self._lock.release()
            if place is not None and (self._place is None or self._place is after):
                self._place = None if gift.begun else place
            raise

    def _standing(self) -> _Place:
        with self._lock:
            place = self._place
        if place is None:
            raise SessionError(
                "the session cannot go on: a call was interrupted while it wrote the next state over the last one; "
                "restore() a saved session, set state, or start a new session"
            )
        return place

    def _shared(self) -> _Place:
        """Where it stands, for somebody who will hold the state too."""
        with self._lock:
            self._place = place = self._standing()._replace(owned=False)
            return place

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
        check_sampling(temperature, top_k, top_p)
        logits = self.next_logits.float().cpu()
        if seed is not None:
            reseed(self._generator, seed)
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
        """Feed ``prompt`` (a tensor: ``prompt [T]``), then yield sampled tokens, each already fed: a caller may stop
        and go on anywhere.

        Ends after ``max_tokens`` (None: never) or at a token of ``stop``, which is neither yielded nor fed.
        Bad arguments raise at the first token.
        """
        stops = {stop} if isinstance(stop, int) else set(stop)
        if max_tokens is not None and max_tokens < 0:
            raise RangeError(f"stream: expected max_tokens >= 0 or None, got {max_tokens}")
        check_sampling(temperature, top_k, top_p)
        if prompt is not None:
            self.feed(prompt)
        if seed is not None:
            reseed(self._generator, seed)
        produced = 0
        while max_tokens is None or produced < max_tokens:
            drawn_from = self._generator.get_state()
            try:
                token = self.sample(temperature, top_k, top_p)
                if token in stops:
                    return
                self.feed(token)
            except BaseException:
                self._generator.set_state(drawn_from)  # what was drawn and not fed is drawn again
                raise
            produced += 1
            yield token

    def fork(self) -> Session:
        """An independent session at the same place, random numbers included, in constant time.

        .. code-block:: pycon

            >>> from linrec.models import Config, LanguageModel
            >>> prompt = Session(LanguageModel(Config(d_model=16)).eval(), seed=0).feed(b"for i in ")

            # several continuations of one prompt, which was read once
            >>> texts = [bytes(prompt.fork().stream(max_tokens=4, seed=n, stop=256)) for n in range(3)]

            # a text scored behind it; where it stands, nothing has happened
            >>> before = prompt.next_logits
            >>> scored = prompt.fork().feed(b"range(3):").next_logits
            >>> torch.equal(prompt.next_logits, before), torch.equal(scored, before)
            (True, False)

            # a fork draws what the session would have drawn
            >>> list(prompt.fork().stream(max_tokens=4)) == list(prompt.stream(max_tokens=4))
            True
        """
        other = object.__new__(type(self))
        with self._lock:
            other._place = self._shared()
            other._generator = torch.Generator()
            other._generator.set_state(self._generator.get_state())
        other.model, other._device, other._lock = self.model, self._device, threading.RLock()
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to one safetensors file, under a temporary name that is then renamed.

        .. code-block:: pycon

            >>> import tempfile
            >>> from linrec.models import Config, LanguageModel
            >>> folder = tempfile.TemporaryDirectory()
            >>> path = os.path.join(folder.name, "chat.safetensors")
            >>> model = LanguageModel(Config(d_model=16)).eval()
            >>> session = Session(model).feed(b"for i in ")
            >>> session.save(path)

            # state, next logits and random numbers: it goes on as if it had never stopped
            >>> later = Session(model).restore(path)
            >>> list(later.stream(max_tokens=5)) == list(session.stream(max_tokens=5))
            True

            # with another model it does not
            >>> Session(LanguageModel(Config(d_model=16))).restore(path)
            Traceback (most recent call last):
            linrec.errors.SessionError: ...
            >>> folder.cleanup()
        """
        with self._lock:
            place, rng = self._shared(), self._generator.get_state()
        write_session(path, self.model.fingerprint(), place.state, place.logits, rng)

    def restore(self, path: str | os.PathLike[str]) -> Session:
        """Go on where a saved session stood, and return this one: ``Session(model).restore(path)``.

        Raises SessionError for a file of another model or version, a truncated or a damaged one; this session is
        then as it was.
        """
        saved = read_session(path, self.model.fingerprint(), self.model.init_state(1), self._device)
        generator = torch.Generator()
        generator.set_state(saved.rng)
        with self._lock:
            self._place = None
            self._generator = generator
            self._place = _Place(saved.state, saved.logits, owned=True)
        return self


def _copied(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _device_of(state: State) -> torch.device:
    for _, tensor in named_tensors(state):
        return tensor.device
    return torch.device("cpu")
