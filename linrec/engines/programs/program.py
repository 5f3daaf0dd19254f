"""Rules that are more than one engine call.

The terms hold the tensors with a time axis as they are, and a body ``body(run, tensors, state) -> (o, state)``
that computes one ordinary batch. The body calls the matrix engine through ``run.matrix`` and takes chunks of its
own through ``run.chunks``; both follow the form that was asked for. Packing is handled here, once: segments of
equal length make a batch, so a body never meets padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.engines.numerics.checks import checked_state
from linrec.packing import by_segment, equal_lengths
from linrec.rule import Call, Choice, Terms, check_backend
from linrec.state import State

Tensors = Mapping[str, Tensor]
ChunkStep = Callable[[dict[str, Tensor], Any], tuple[Tensor, Any]]
CHUNK = 64
COMPOSED = "it is composed of several engine calls; use backend='auto'"


class Run(NamedTuple):
    """How a body reaches the forms: everything it calls follows the form, chunk size and backend of the call."""

    call: Call
    who: str
    noted: list[Choice] | None = None  # where each call of the matrix engine says what computes it

    @property
    def scale(self) -> float:
        """The factor on q; the body applies it, or hands it on to :meth:`matrix`."""
        return self.call.scale

    def matrix(self, terms: MatrixTerms, state: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """One call of the matrix engine from ``state [B, HV, K, V]``: o ``[B, T, HV, V]`` and the final state."""
        call = self.call._replace(scale=scale, bounds=None)
        if self.noted is not None:
            self.noted.append(MATRIX.explain(terms, state, call, self.who))
        return MATRIX.run(terms, state, call, self.who)

    def chunks(
        self, step: ChunkStep, tensors: Tensors, state: State, default: int = CHUNK
    ) -> tuple[Tensor, State]:
        """``step(tensors of one chunk, state) -> (o, state)`` over the sequence, o joined along dim 1.

        A chunk is one token in the recurrent form, everything in the parallel form, else ``chunk_size`` tokens.
        """
        length = next(iter(tensors.values())).shape[1]
        size = {"parallel": length, "chunkwise": self.call.chunk_size or default}.get(self.call.form, 1)
        outputs = []
        for start in range(0, length, size):
            o, state = step({n: x[:, start : start + size] for n, x in tensors.items()}, state)
            outputs.append(o)
        return torch.cat(outputs, dim=1), state


Body = Callable[[Run, dict[str, Tensor], Any], tuple[Tensor, Any]]


@dataclass
class ProgramTerms(Terms):
    """``tensors`` ``[B, T, ...]`` by name; ``empty(rows)`` the empty state; ``out`` the output's shape after time."""

    tensors: Tensors
    body: Body
    empty: Callable[[int], State]
    out: tuple[int, ...]

    def over_time(self) -> dict[str, Tensor]:
        """The tensors with a time axis, by name."""
        return dict(self.tensors)


class ProgramEngine:
    """See :mod:`linrec.engines.programs.program`."""

    name = "program"

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """As the matrix engine: float32, or float64 for float64 inputs."""
        return MATRIX.compute_dtype(dtype)

    def auto_backend(self, device: str) -> str:
        """What ``backend="auto"`` runs: the backends of the engine calls inside."""
        return MATRIX.auto_backend(device)

    def explain(self, terms: ProgramTerms, state: State, call: Call, who: str) -> Choice:
        """The algorithms of its calls of the matrix engine, as the first token finds them."""
        check_backend(call, who, COMPOSED)
        noted: list[Choice] = []
        tensors = {name: x[:, :1] for name, x in terms.tensors.items()}
        rows = next(iter(tensors.values())).shape[0]
        with torch.no_grad():
            terms.body(Run(call._replace(bounds=None), who, noted), tensors, terms.empty(rows))
        reasons = dict.fromkeys(f"{inner.algorithm} ({inner.reason})" for inner in noted)
        return Choice("program", "; ".join(["several calls of engines", *reasons]))

    def init_state(self, terms: ProgramTerms, segments: int) -> State:
        """The body's own empty state."""
        return terms.empty(segments)

    def run(self, terms: ProgramTerms, state: State, call: Call, who: str) -> tuple[Tensor, State]:
        """Output ``[B, T, *out]`` in accumulator precision, and the final state."""
        check_backend(call, who, COMPOSED)
        empty = terms.empty(terms.segments(call))
        state = empty if state is None else checked_state(state, empty, who)

        def run_batch(tensors: Tensors, rows: State, lengths: Tensor | None) -> tuple[Tensor, State]:
            first = next(iter(tensors.values()))
            if not first.shape[1]:
                return first.new_zeros(first.shape[0], 0, *terms.out), rows
            return terms.body(Run(call, who), dict(tensors), rows)

        if call.bounds is None:
            return run_batch(terms.tensors, state, None)
        return by_segment(run_batch, terms.tensors, state, call.bounds, equal_lengths)


def heads_first(x: Tensor) -> Tensor:
    """``[B, T, H, ...] -> [B, H, T, ...]`` and back."""
    return x.transpose(1, 2)


def micro_steps(x: Tensor) -> Tensor:
    """``[B, T, H, R, ...] -> [B, T * R, H, ...]``: the micro steps as tokens of their own."""
    return rearrange(x, "B T H R ... -> B (T R) H ...")


PROGRAM = ProgramEngine()
