"""What rules and engines agree on: a rule lowers its arguments to terms, and an engine runs them in every form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from linrec.call import Call
from linrec.state import State


@dataclass
class Terms:
    """A rule's inputs lowered to an engine; each engine defines its own fields. Nobody changes one; that they could
    be changed makes them faster to make, and decoding makes one a token.

    ``finish`` maps the engine's output (in accumulator precision) to the rule's; pointwise in time.
    """

    finish: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)

    def over_time(self) -> dict[str, Tensor]:
        """The tensors with a time axis, ``[B, T, ...]``, by field name."""
        raise NotImplementedError

    @property
    def leading(self) -> Tensor:
        """The first of them."""
        return next(iter(self.over_time().values()))

    @property
    def accumulator(self) -> torch.dtype:
        """The dtype of the state and of all sums: at least float32."""
        return torch.promote_types(self.leading.dtype, torch.float32)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same terms with these fields replaced."""
        return replace(self, **tensors)  # type: ignore[arg-type]

    def segments(self, call: Call) -> int:
        """Rows of the state: the batch, or the number of packed segments."""
        if call.bounds is not None:
            return len(call.bounds) - 1
        return self.leading.shape[0]


class Engine(Protocol):
    """One recurrence, in every form.

    One that has several algorithms for a form names them: ``algorithms`` are those that ``backend`` may ask for, with
    the form that each computes (None: every form), and ``explain``, called as ``run`` is, gives the Choice for a call.
    """

    name: str

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """In what it wants the tokens of a call in ``dtype``."""

    def auto_backend(self, device: str) -> str:
        """The backend that ``auto`` takes on a kind of device."""

    def init_state(self, terms: Any, segments: int) -> State:
        """The empty state of so many sequences."""

    def run(self, terms: Any, state: State, call: Call, who: str) -> tuple[Tensor, State]:
        """Output ``[B, T, ...]`` and state, from ``state`` (None: the empty one); ``who`` asks, for messages."""
