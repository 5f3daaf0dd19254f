"""Mini-batches of a fast-weight memory: which tokens belong to which, and what an unfinished one leaves.

The state holds differences from the learned first weights, so that the empty state is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linrec.engines.numerics.checks import checked_state
from linrec.errors import DtypeError, ShapeError
from linrec.packing import by_segment
from linrec.rule import Call, Terms, check_backend
from linrec.state import named_tensors

Maps = tuple[Tensor, ...]


class FastState(NamedTuple):
    """Each a tuple of maps ``[B, H, in, out]``; place ``[B]``: tokens of the unfinished mini-batch.

    start: the weights that gradients are taken at, and now: the current ones (None where they follow from the
    rest), both as differences from the first weights; momentum: what gradients have been gathered.
    """

    start: Maps
    now: Maps | None
    momentum: Maps
    place: Tensor


@dataclass
class FastTerms(Terms):
    """q, k ``[B, T, H, K]``, v ``[B, T, H, V]``; ``weights``: the first weights ``[H, in, out]``, a map each."""

    q: Tensor
    k: Tensor
    v: Tensor
    weights: Maps
    mini_batch: int

    has_now = False

    def gates(self) -> dict[str, Tensor]:
        """Per-token numbers ``[B, T, H]`` by field name; zero must mean: no such token."""
        raise NotImplementedError

    def over_time(self) -> dict[str, Tensor]:
        """The tensors with a time axis, by name."""
        return {"q": self.q, "k": self.k, "v": self.v, **self.gates()}

    def block(self, x: dict[str, Tensor], first: int, memory: FastState) -> tuple[Tensor, FastState]:
        """What tokens ``first ..`` of a mini-batch read ``[B, H, n, V]``, and the memory after them.

        ``x`` holds the tensors heads first; the memory here holds whole weights, not differences.
        """
        raise NotImplementedError

    def output(self, q: Tensor, read: Tensor) -> Tensor:
        """The output, pointwise in time, from what the blocks read; q ``[B, T, H, K]``, read ``[B, T, H, V]``."""
        return read

    def finished(self, memory: FastState) -> FastState:
        """The memory after a mini-batch's last token."""
        raise NotImplementedError


class FastweightEngine:
    """See :mod:`linrec.engines.fastweight`."""

    name = "fastweight"
    reads_values = True  # of the state, to find its place in a mini-batch

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """float32, or float64 for float64 inputs."""
        return torch.promote_types(dtype, torch.float32)

    def init_state(self, terms: FastTerms, segments: int) -> FastState:
        """Zeros: the first weights, nothing gathered."""
        zeros = tuple(w.new_zeros(segments, *w.shape) for w in terms.weights)
        place = torch.zeros(segments, dtype=torch.int64, device=terms.q.device)
        return FastState(zeros, zeros if terms.has_now else None, zeros, place)

    def auto_backend(self, device: str) -> str:
        """What ``backend="auto"`` runs on this kind of device."""
        return "torch (matrix products)"

    def run(self, terms: FastTerms, state: Any, call: Call, who: str) -> tuple[Tensor, FastState]:
        """Output ``[B, T, H, V]`` in accumulator precision, and the memory."""
        check_backend(call, who, "there is no Triton kernel for fast weights; use backend='torch' or 'auto'")
        empty = self.init_state(terms, terms.segments(call))
        memory = empty if state is None else _checked(state, empty, who)
        if call.bounds is None:
            return _run_batch(terms, memory, None, call, begins=state is None)
        return by_segment(
            lambda tensors, rows, lengths: _run_batch(terms.with_tensors(tensors), rows, lengths, call),
            terms.over_time(),
            memory,
            call.bounds,
        )


def _run_batch(
    terms: FastTerms, state: FastState, lengths: Tensor | None, call: Call, begins: bool = False
) -> tuple[Tensor, FastState]:
    """Place the tokens on the grid of mini-batches, and walk it. ``begins``: no row has an unfinished one."""
    x = {name: t.transpose(1, 2) for name, t in terms.over_time().items()}
    x["q"] = x["q"] * call.scale
    length = terms.q.shape[1]
    ends = state.place + (length if lengths is None else lengths)
    if length == 0:
        return terms.v, state
    before = 0 if begins or not len(ends) else int(state.place[0])
    moved = not begins and not bool((state.place == before).all())
    if moved:  # rows stand at different places of their mini-batches: shift each to its own
        x, before = {name: _shifted(t, state.place) for name, t in x.items()}, 0
        length = x["q"].shape[2]
    apart = moved or lengths is not None  # whether some rows may end before others
    stop = before + length
    rows = (
        1
        if call.form in ("recurrent", "step")
        else min(call.chunk_size or terms.mini_batch, terms.mini_batch)
    )
    memory, outputs, at = _whole(state, terms.weights), [], before
    while at < stop:
        grid_end = (at // terms.mini_batch + 1) * terms.mini_batch
        until = min(at + rows, grid_end, stop)
        part = {name: t[:, :, at - before : until - before] for name, t in x.items()}
        o, memory = terms.block(part, at % terms.mini_batch, memory)
        outputs.append(o)
        if until == grid_end:
            new = terms.finished(memory)
            memory = _where(ends >= grid_end, new, memory) if apart else new
        at = until
    o = terms.output(x["q"], torch.cat(outputs, dim=2))
    if moved:
        o = _shifted_back(o, state.place, terms.q.shape[1])
    return o.transpose(1, 2), _differences(memory, terms.weights, ends % terms.mini_batch)


def _shifted(x: Tensor, place: Tensor) -> Tensor:
    """``[B, H, T, ...]``: row b moved right by ``place[b]``, zeros in front and behind."""
    size = x.shape[2] + int(place.max())
    source = torch.arange(size, device=x.device) - place[:, None]
    real = (source >= 0) & (source < x.shape[2])
    taken = _gather(x, source.clamp(0, x.shape[2] - 1))
    return torch.where(real.reshape(real.shape[0], 1, size, *[1] * (x.dim() - 3)), taken, 0)


def _shifted_back(o: Tensor, place: Tensor, length: int) -> Tensor:
    return _gather(o, place[:, None] + torch.arange(length, device=o.device))


def _gather(x: Tensor, source: Tensor) -> Tensor:
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x.transpose(1, 2)[rows, source].transpose(1, 2)


def _whole(state: FastState, weights: Maps) -> FastState:
    """Differences to weights."""
    start = tuple(d + w for d, w in zip(state.start, weights, strict=True))
    now = None if state.now is None else tuple(d + w for d, w in zip(state.now, weights, strict=True))
    return state._replace(start=start, now=now)


def _differences(memory: FastState, weights: Maps, place: Tensor) -> FastState:
    start = tuple(m - w for m, w in zip(memory.start, weights, strict=True))
    now = None if memory.now is None else tuple(m - w for m, w in zip(memory.now, weights, strict=True))
    return FastState(start, now, memory.momentum, place)


def _where(done: Tensor, finished: FastState, memory: FastState) -> FastState:
    """Rows that have reached the end of the mini-batch from ``finished``, the others unchanged."""

    def pick(new: Maps, old: Maps) -> Maps:
        return tuple(torch.where(done[:, None, None, None], a, b) for a, b in zip(new, old, strict=True))

    now = None if memory.now is None or finished.now is None else pick(finished.now, memory.now)
    momentum = pick(finished.momentum, memory.momentum)
    return FastState(pick(finished.start, memory.start), now, momentum, memory.place)


def _checked(state: Any, empty: FastState, who: str) -> FastState:
    if not isinstance(state, FastState):
        raise DtypeError(f"{who}: state must be a FastState, got {type(state).__name__}")
    got, want = list(named_tensors(state)), list(named_tensors(empty))
    if [(n, t.shape) for n, t in got] != [(n, t.shape) for n, t in want]:
        shown = [list(t.shape) for _, t in want], [list(t.shape) for _, t in got]
        raise ShapeError(f"{who}: the state's tensors must be {shown[0]}, got {shown[1]}")
    return checked_state(state, empty, who)


FASTWEIGHT = FastweightEngine()
