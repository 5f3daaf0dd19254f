"""The face of the matrix engine: its state, packing, and the way of a call to the algorithm that computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linrec.engines.matrix.algorithms import FORM_OF, choose
from linrec.engines.matrix.channel import chunkwise_channel
from linrec.engines.matrix.chunk import chunkwise_plain, parallel
from linrec.engines.matrix.general import chunkwise_general
from linrec.engines.matrix.gpu import in_triton
from linrec.engines.matrix.recurrent import recurrent, step
from linrec.engines.matrix.scalar import chunkwise_scalar
from linrec.engines.matrix.terms import MatrixTerms
from linrec.engines.numerics.backends import auto_on
from linrec.errors import DeviceError, DtypeError, ShapeError
from linrec.packing import by_segment
from linrec.rule import Call, Choice

ALGORITHMS: dict[str, Callable[[MatrixTerms, Any, Call], tuple[Tensor, Tensor]]] = {
    "triton": in_triton,
    "step": step,
    "recurrent": recurrent,
    "parallel": parallel,
    "chunkwise_scalar": chunkwise_scalar,
    "chunkwise_channel": chunkwise_channel,
    "chunkwise_general": chunkwise_general,
    "chunkwise_plain": chunkwise_plain,
}


class MatrixEngine:
    """See :mod:`linrec.engines.matrix`."""

    name = "matrix"
    algorithms = FORM_OF

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Everything after the arguments happens in float32, or float64 for float64 inputs."""
        return torch.float64 if dtype == torch.float64 else torch.float32

    def init_state(self, terms: MatrixTerms, segments: int) -> Tensor:
        """Zeros ``[segments, HV, K, V]`` in accumulator precision."""
        return terms.v.new_zeros(terms.state_shape(segments), dtype=terms.accumulator)

    def auto_backend(self, device: str) -> str:
        """What ``backend="auto"`` runs on this kind of device."""
        return auto_on(device)

    def explain(self, terms: MatrixTerms, state: Tensor | None, call: Call, who: str) -> Choice:
        """Which algorithm :meth:`run` takes, and why."""
        return choose(terms, state, call, who)

    def run(self, terms: MatrixTerms, state: Tensor | None, call: Call, who: str) -> tuple[Tensor, Tensor]:
        """Output ``[B, T, HV, V]``, in accumulator precision where more is computed with it, and the final state."""
        segments = terms.segments(call)
        if state is not None:
            state = _checked(state, terms, segments, who)
        algorithm = choose(terms, state, call, who).algorithm
        compute, triton = ALGORITHMS[algorithm], algorithm == "triton"
        if state is None and not triton:  # the kernels need no zeros
            state = self.init_state(terms, segments)
        if triton or call.bounds is None:  # the kernels find their way in packed sequences
            return compute(terms, state, call)
        return by_segment(
            lambda tensors, rows, lengths: compute(terms.with_tensors(tensors), rows, call),
            terms.over_time(),
            state,
            call.bounds,
        )


def _checked(state: Tensor, terms: MatrixTerms, rows: int, who: str) -> Tensor:
    shape, wanted = terms.state_shape(rows), terms.accumulator  # no empty state is made to compare with
    if not isinstance(state, Tensor):
        raise DtypeError(f"{who}: state must be a tensor {list(shape)}, got {type(state).__name__}")
    if state.shape == shape and state.dtype is wanted and state.device == terms.v.device:
        return state
    if state.shape != shape:
        raise ShapeError(
            f"{who}: state must be [B or segments, HV, K, V] = {list(shape)}, got {list(state.shape)}"
        )
    if not state.is_floating_point():
        raise DtypeError(f"{who}: state must be floating point, got {state.dtype}")
    if state.device != terms.v.device:
        raise DeviceError(f"{who}: state is on {state.device}, but the inputs are on {terms.v.device}")
    return state.to(wanted)


MATRIX = MatrixEngine()
