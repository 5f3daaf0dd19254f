"""Any recurrence at all, token by token: for cells whose gates read the previous output, so that nothing composes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from linrec.engines.numerics.checks import checked_state
from linrec.packing import by_segment
from linrec.rule import Call, Terms, check_backend
from linrec.state import State, named_tensors, replace_tensors


@dataclass
class CellTerms(Terms):
    """``tokens`` ``[B, T, ...]``; ``cell`` maps (one token's tensors ``[B, ...]``, state) to (output, state);
    ``empty`` maps a number of rows to the empty state; ``channels`` is the output's shape after ``[B, T]``."""

    tokens: Mapping[str, Tensor]
    cell: Callable[[Mapping[str, Tensor], State], tuple[Tensor, State]]
    empty: Callable[[int], State]
    channels: tuple[int, ...]

    def over_time(self) -> dict[str, Tensor]:
        """The tokens."""
        return dict(self.tokens)


class CellEngine:
    """See :mod:`linrec.engines.cell`."""

    name = "cell"

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Everything after the arguments happens in float32, or float64 for float64 inputs."""
        return torch.float64 if dtype == torch.float64 else torch.float32

    def auto_backend(self, device: str) -> str:
        """What ``backend="auto"`` runs on this kind of device."""
        return "torch (no Triton kernel for sequential cells)"

    def init_state(self, terms: CellTerms, segments: int) -> State:
        """What the rule calls empty."""
        return terms.empty(segments)

    def run(self, terms: CellTerms, state: State, call: Call, who: str) -> tuple[Tensor, State]:
        """Output ``[B, T, ...]`` in accumulator precision, and the final state."""
        check_backend(
            call, who, "this version ships no Triton kernel for sequential cells; use backend='torch'"
        )
        empty = self.init_state(terms, terms.segments(call))
        state = empty if state is None else checked_state(state, empty, who)
        if call.bounds is None:
            return _run_batch(terms, state, None, call)
        return by_segment(
            lambda tokens, rows, lengths: _run_batch(replace(terms, tokens=tokens), rows, lengths, call),
            terms.tokens,
            state,
            call.bounds,
        )


def _run_batch(terms: CellTerms, state: State, lengths: Tensor | None, call: Call) -> tuple[Tensor, State]:
    columns = {name: x.unbind(1) for name, x in terms.tokens.items()}
    first = next(iter(terms.tokens.values()))
    outputs = []
    for t in range(first.shape[1]):
        o, after = terms.cell({name: column[t] for name, column in columns.items()}, state)
        state = after if lengths is None else _where(t < lengths, after, state)
        outputs.append(call.scale * o)
    o = torch.stack(outputs, dim=1) if outputs else first.new_zeros(first.shape[0], 0, *terms.channels)
    return o, state


def _where(keep: Tensor, new: State, old: State) -> State:
    """Rows of ``new`` where ``keep`` holds, else of ``old``."""
    before = dict(named_tensors(old))
    rows = {
        path: torch.where(keep.reshape(-1, *[1] * (x.dim() - 1)), x, before[path])
        for path, x in named_tensors(new)
    }
    return replace_tensors(new, rows)


CELL = CellEngine()
