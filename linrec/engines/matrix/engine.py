"""The face of the matrix engine: state, packing, and the choice of form and backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from linrec.engines.matrix import gpu
from linrec.engines.matrix.channel import ChannelLane
from linrec.engines.matrix.chunk import one_chunk, scan_chunks
from linrec.engines.matrix.plan import Plan
from linrec.engines.matrix.recurrent import scan_tokens
from linrec.engines.matrix.scalar import ScalarLane
from linrec.engines.matrix.scan import ChunkScan
from linrec.engines.matrix.terms import MatrixTerms, from_heads, strengthened, to_heads
from linrec.engines.numerics.backends import auto_on, chosen_backend
from linrec.engines.numerics.checks import transformed
from linrec.engines.numerics.scans import floored
from linrec.errors import DeviceError, DtypeError, ShapeError
from linrec.packing import by_segment
from linrec.rule import Call

CHUNK = 64
ONE_BY_ONE = ("recurrent", "step")


class MatrixEngine:
    """See :mod:`linrec.engines.matrix`."""

    name = "matrix"

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Everything after the arguments happens in float32, or float64 for float64 inputs."""
        return torch.float64 if dtype == torch.float64 else torch.float32

    def init_state(self, terms: MatrixTerms, segments: int) -> Tensor:
        """Zeros ``[segments, HV, K, V]`` in accumulator precision."""
        return terms.v.new_zeros(terms.state_shape(segments), dtype=terms.accumulator)

    def auto_backend(self, device: str) -> str:
        """What ``backend="auto"`` runs on this kind of device."""
        return auto_on(device)

    def run(self, terms: MatrixTerms, state: Tensor | None, call: Call, who: str) -> tuple[Tensor, Tensor]:
        """Output ``[B, T, HV, V]``, in accumulator precision where more is computed with it, and the final state."""
        rows = terms.segments(call)
        state = None if state is None else _checked(state, terms, rows, who)
        if state is not None and _decodes(terms, call):
            return scan_tokens(terms, state, call.scale)
        tensors = (*terms.over_time().values(), *(() if state is None else (state,)))
        kernels = chosen_backend(call, who, *tensors, unfit=gpu.unfit(terms)) == "triton"
        terms = _floored(terms, call, kernels)
        if kernels:
            o, last = gpu.scan_packed(terms, state, call)
            return terms.skipped(o), last
        state = self.init_state(terms, rows) if state is None else state
        if call.bounds is None:
            return _run_batch(terms, state, call)
        return by_segment(
            lambda tensors, rows, lengths: _run_batch(terms.with_tensors(tensors), rows, call),
            terms.over_time(),
            state,
            call.bounds,
        )


def _decodes(terms: MatrixTerms, call: Call) -> bool:
    """One token on a CPU, where choosing and packing would take as long as the arithmetic."""
    one = call.form in ONE_BY_ONE and call.bounds is None and call.backend != "triton"
    return one and terms.v.is_cpu and terms.v.shape[1] == 1


def _floored(terms: MatrixTerms, call: Call, kernels: bool) -> MatrixTerms:
    """With log-decays whose sums may be subtracted. One token after the other needs none, nor do kernels for decays by
    channel: they add up the decays between two rows."""
    g = terms.g
    if g is None or (g.shape[1] == 1 or g.dim() == 4 if kernels else call.form in ONE_BY_ONE):
        return terms
    return replace(terms, g=floored(g))


def _run_batch(terms: MatrixTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    if call.form == "chunkwise" and terms.v.shape[0] and not transformed(state, *terms.tensors()):
        return _run_lane(terms, state, call)
    if call.form in ONE_BY_ONE:
        return scan_tokens(terms, state, call.scale)
    x = to_heads(terms.explicit(), call.scale)
    grouped = state.unflatten(1, (terms.k.shape[2], -1))
    if call.form == "parallel" and terms.v.shape[1]:
        o, last = one_chunk(x, grouped, terms.predict, terms.readout)
    else:
        o, last = scan_chunks(x, grouped, call.chunk_size or CHUNK, terms.predict, terms.readout)
    return terms.skipped(from_heads(o)), last.flatten(1, 2)


def _run_lane(terms: MatrixTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    plan = Plan(call.scale, call.chunk_size or CHUNK, terms.predict, terms.readout)
    lane: Any = ScalarLane
    if terms.a is not None or (terms.g is not None and terms.g.dim() == 4):
        lane, terms = ChannelLane, _by_channel(terms)

    def plain(state: Tensor, *values: Tensor | None) -> tuple[Tensor, Tensor]:
        same = replace(terms, bonus=None, **dict(zip(lane.NAMES, values, strict=True)))
        heads = to_heads(same.explicit(), plan.scale)
        o, last = scan_chunks(
            heads, state.unflatten(1, (terms.k.shape[2], -1)), plan.chunk, plan.predict, plan.readout
        )
        return (same.skipped(from_heads(o)) if "skip" in lane.NAMES else from_heads(o)), last.flatten(1, 2)

    o, last = ChunkScan.apply(lane, plan, plain, state, *(getattr(terms, name) for name in lane.NAMES))
    if terms.bonus is not None:
        repeat = terms.v.shape[2] // terms.k.shape[2]
        now = ((terms.q * terms.k).repeat_interleave(repeat, dim=2) * terms.bonus).sum(-1, keepdim=True)
        o = o + call.scale * now * (terms.v if terms.write is None else strengthened(terms.write, terms.v))
    return (o if "skip" in lane.NAMES else terms.skipped(o)), last


def _by_channel(terms: MatrixTerms) -> MatrixTerms:
    """With a decay ``[B, T, HV, 1 or K]``."""
    g = terms.v.new_zeros(terms.v.shape[:3]) if terms.g is None else terms.g
    return replace(terms, g=g if g.dim() == 4 else g[..., None])


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
