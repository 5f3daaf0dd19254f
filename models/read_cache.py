"""What generation hands round between calls: a state, and which tokens it has read.

transformers' convention is that ``input_ids`` hold the whole sequence and the cache says how much of it has been read.
A recurrent state alone cannot say that, so the cache keeps the ids (and their mask) beside it. Nothing is changed in
place but by ``crop`` and ``activate_past_recording``, which transformers calls on caches of its own loops: a call
with a cache returns another one, and holding on to a cache is a fork.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from linrec.errors import ArgumentError, ShapeError
from linrec.models.language_model import ModelState
from linrec.state import State, map_tensors, select_rows

SPACING = 16  # tokens between states that are kept for going back: fewer cost memory, more are read again
UNKNOWN = -1  # the id of a token that was read as an embedding


class ReadState(ModelState):
    """A ModelState that remembers which tokens it has read; what is made from it (rows, copies) does not."""

    tokens: Tensor | None = None
    real: Tensor | None = None


class LinrecCache:
    """``state`` after ``tokens [R, n]``, of which ``attention_mask [R, n]`` (None: all) are no padding.

    A cache without tokens does not know what its state has read (packed documents; a plain ModelState). After
    ``crop`` the last tokens that remain may be in no state that was kept: they are read again with the next call.
    """

    is_compileable = False
    is_linear = (False,)

    def __init__(
        self,
        state: ModelState | None = None,
        tokens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ):
        if attention_mask is not None and (tokens is None or tokens.shape != attention_mask.shape):
            came = None if tokens is None else list(tokens.shape)
            raise ShapeError(
                f"attention_mask: expected the shape of tokens, {came}, got {list(attention_mask.shape)}"
            )
        self._state = state
        self.tokens = tokens
        self.real = None if attention_mask is None else attention_mask.bool()
        self.at = 0 if tokens is None or state is None else tokens.shape[1]  # columns that are in the state
        self.skipped = 0  # columns that were read before those of generate's input_ids
        self.masked: int | None = None  # columns of the mask that generate was given
        self.by_count = False  # whether few input_ids are new ones, without a mask that says so
        self.expanded = 1  # rows that generate made of each row it was given
        self.prompt: LinrecCache | None = None  # before the first choice of beams
        self.piece: int | None = None  # most tokens that are read at once
        self.recording = False
        self._kept: list[tuple[int, ModelState | None]] = []

    @classmethod
    def of(cls, value: Any, name: str) -> LinrecCache:
        """A cache for what was given as ``name``. Raises ArgumentError for what holds no state of linrec."""
        if isinstance(value, LinrecCache):
            return value
        if isinstance(value, ReadState):
            return cls(value, value.tokens, value.real)
        if isinstance(value, ModelState):
            return cls(value)
        raise ArgumentError(
            f"{name}: expected a LinrecCache or a ModelState, as linrec's models return them, got "
            f"{type(value).__name__}"
        )

    @property
    def state(self) -> ModelState | None:
        """The state after every token; ArgumentError where some are still to be read again after ``crop``."""
        if self.count and self.at < self.count:
            raise ArgumentError(
                f"the last {self.count - self.at} tokens of a cropped cache are read with the next call; until then "
                "there is no state after them"
            )
        if self._state is None or self.tokens is None:
            return self._state
        state = ReadState(*self._state)
        state.tokens, state.real = self.tokens, self.real
        return state

    @property
    def layers(self) -> tuple[State, ...]:
        """The states of the layers: a cache stands for its state in ``LanguageModel`` too."""
        state = self.state
        return () if state is None else state.layers

    @property
    def count(self) -> int | None:
        """Columns read, padding included; None where nobody knows."""
        if self.tokens is None:
            return 0 if self._state is None else None
        return self.tokens.shape[1]

    def real_counts(self) -> Tensor | None:
        """Tokens read by each row without padding ``[R]``; None where nobody knows or nothing was read."""
        if self.tokens is None:
            return None
        if self.real is None:
            return self.tokens.new_full((self.tokens.shape[0],), self.tokens.shape[1])
        return self.real.sum(1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read. Raises ArgumentError where nobody knows."""
        if self.count is None:
            raise ArgumentError("the cache holds a state of which nobody knows how many tokens it has read")
        return self.count

    # Reading on.

    def entry(self) -> tuple[ModelState | None, Tensor | None, Tensor | None]:
        """The state to start from, and the tokens ``[R, m]`` and mask that must be read before new ones."""
        if self.tokens is None or self.at == self.tokens.shape[1]:
            return self._state, None, None
        real = None if self.real is None else self.real[:, self.at :]
        return self._state, self.tokens[:, self.at :], real

    def fork(self) -> LinrecCache:
        """The same cache, for one who may change it."""
        new = object.__new__(type(self))  # copy.copy takes as long as a small tensor operation
        new.__dict__.update(self.__dict__)
        new._kept = list(self._kept)
        return new

    def advanced(self, state: ModelState, tokens: Tensor | None, mask: Tensor | None) -> LinrecCache:
        """The cache after ``tokens [R, T]`` more, of ``mask [R, T]``, which are now in ``state`` with all before
        them."""
        new = self.fork()
        new._state = state
        if tokens is None or self.count is None:
            new.tokens, new.real, new.at = None, None, 0
            return new
        before = tokens[:, :0] if self.tokens is None else self.tokens
        new.tokens = torch.cat([before, tokens], 1)
        if mask is not None or self.real is not None:
            known = before.new_ones(before.shape, dtype=torch.bool) if self.real is None else self.real
            new.real = torch.cat(
                [known, torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask], 1
            )
        new.at = new.tokens.shape[1]
        return new

    def keep(self, at: int, state: ModelState | None) -> None:
        """Remember a state to go back to, unless one is near."""
        if self.recording and (not self._kept or at - self._kept[-1][0] >= SPACING):
            self._kept.append((at, state))

    def pieces(self, length: int, drafted: int) -> list[slice]:
        """Parts of ``length`` tokens that are read one after another; the last ``drafted`` may be taken back."""
        ends = set(range(self.piece, length, self.piece)) if self.piece else set()
        if self.recording and length > max(SPACING, drafted):
            ends.add(length - max(SPACING, drafted))
        cuts = [0, *sorted(ends), length]
        return [slice(a, b) for a, b in itertools.pairwise(cuts)]

    # Going back.

    def activate_past_recording(self) -> None:
        """From here on keep states that ``crop`` can go back to."""
        if not self.recording:
            self.recording = True
            self._kept = [(self.at, self._state)]

    @property
    def is_croppable(self) -> bool:
        """Whether states are kept for ``crop``."""
        return self.recording

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last ``-tokens_to_remove`` tokens back.

        Raises ArgumentError for a positive number, for more than were read, and where the tokens to read again are
        not known.
        """
        if tokens_to_remove > 0 or self.count is None or -tokens_to_remove > self.count:
            raise ArgumentError(
                "crop: expected the negative number of tokens to take back, at most those read, "
                f"{self.count}, got {tokens_to_remove}"
            )
        target = self.count + tokens_to_remove
        if self.tokens is None or (target >= self.at and tokens_to_remove == 0):
            return
        start = (0, None)
        before = [kept for kept in self._kept if kept[0] <= target]
        at, state = (self.at, self._state) if self.at <= target else (before or [start])[-1]
        if bool((self.tokens[:, at:target] == UNKNOWN).any()):
            raise ArgumentError("crop: the tokens to read again were embeddings, which are not kept")
        self.tokens = self.tokens[:, :target]
        self.real = None if self.real is None else self.real[:, :target]
        self.at, self._state, self._kept = at, state, before[-1:]

    # Rows.

    def select_rows(self, rows: Tensor) -> LinrecCache:
        """Row i of the result is row ``rows[i]``."""
        new = self.fork()
        new._state = select_rows(self._state, rows)
        new._kept = [(at, select_rows(state, rows)) for at, state in self._kept]
        new.tokens = None if self.tokens is None else self.tokens.index_select(0, rows.to(self.tokens.device))
        new.real = None if self.real is None else self.real.index_select(0, rows.to(self.real.device))
        return new

    def repeated(self, times: int) -> LinrecCache:
        """Every row ``times`` times, one after another."""
        rows = self.rows()
        if times == 1 or rows is None:
            return self
        return self.select_rows(torch.arange(rows).repeat_interleave(times))

    def rows(self) -> int | None:
        """Sequences; None for an empty cache."""
        if self.tokens is not None:
            return self.tokens.shape[0]
        sizes: list[int] = []
        map_tensors(lambda tensor: sizes.append(tensor.shape[0]), self._state)
        return sizes[0] if sizes else None

    def plain(self) -> LinrecCache:
        """The same reading without what one call of generate wrote beside it: what is handed out."""
        new = LinrecCache(self._state, self.tokens, self.real)
        new.at = self.at
        return new
