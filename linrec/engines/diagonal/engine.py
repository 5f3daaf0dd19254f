"""The diagonal engine: which form, which backend, and one chunk of it; see :mod:`linrec.engines.diagonal`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from linrec.engines.diagonal.chunks import in_chunks, without_padding
from linrec.engines.diagonal.convolved import convolution, responses
from linrec.engines.diagonal.terms import DiagonalTerms
from linrec.engines.diagonal.values import scan_values, selective_token
from linrec.engines.numerics import scans
from linrec.engines.numerics.backends import auto_on, chosen_backend
from linrec.engines.numerics.checks import checked_state, differentiated, is_tensor_of, only_values
from linrec.engines.numerics.recurrence import recurrence, recurrence_in_place
from linrec.packing import by_segment
from linrec.rule import Call

CACHED = 2**20  # numbers of one expanded tensor that stay in cache; a chunk is as long as that allows
RESPONSE = 64  # tokens of a chunk whose output is a convolution
LOG2_E = 1 / math.log(2)

Scan = Callable[[Tensor, Tensor, Tensor], Tensor]


class DiagonalEngine:
    """See :mod:`linrec.engines.diagonal`."""

    name = "diagonal"

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Everything after the arguments happens in float32, or float64 for float64 inputs."""
        return torch.float64 if dtype == torch.float64 else torch.float32

    def init_state(self, terms: DiagonalTerms, segments: int) -> Tensor:
        """Zeros ``[segments, *channels]``, or ``[segments, *channels, 2]`` if complex, in accumulator precision."""
        return terms.leading.new_zeros(_state_shape(terms, segments), dtype=terms.accumulator)

    def auto_backend(self, device: str) -> str:
        """What ``backend="auto"`` runs on this kind of device."""
        return auto_on(device)

    def run(self, terms: DiagonalTerms, state: Tensor | None, call: Call, who: str) -> tuple[Tensor, Tensor]:
        """Output ``[B, T, ...]`` in accumulator precision, and the final state, from ``state [B, ...]``."""
        first, fresh, rows = terms.leading, state is None, terms.segments(call)
        alone = call.bounds is None and first.shape[1] == 1
        convolved = call.form == "parallel" and terms.parallel == "convolution"
        if call.backend != "auto" or not (convolved or (alone and first.is_cpu)):
            call = call._replace(backend=chosen_backend(call, who, *terms.tokens.values()))
        if not is_tensor_of(state, _state_shape(terms, rows), terms.accumulator, first.device):
            empty = self.init_state(terms, rows)  # decoding has no use for it
            state = empty if state is None else checked_state(state, empty, who)
        if alone and call.backend != "triton":
            one = _one_token if terms.selective is None else selective_token
            return one(terms, state, call.scale)
        terms = replace(terms, fresh=fresh)
        if call.backend == "triton" and (terms.selective is not None or not terms.recompute):
            from linrec.engines.diagonal.gpu import scan_packed

            return scan_packed(terms if terms.selective is not None else terms.widened(), state, call)
        terms = terms.widened()
        if call.bounds is None:
            return scan_batch(terms, state, None, call)
        return by_segment(
            lambda tokens, rows, lengths: scan_batch(replace(terms, tokens=tokens), rows, lengths, call),
            terms.tokens,
            state,
            call.bounds,
        )


def _state_shape(terms: DiagonalTerms, rows: int) -> tuple[int, ...]:
    return (rows, *terms.channels, 2) if terms.complex else (rows, *terms.channels)


def _one_token(terms: DiagonalTerms, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The recurrence once; every form is that for one token."""
    given = {**terms.widened_tokens(), **terms.constants}
    decay, x = terms.expand(given)
    h = state if not terms.complex else torch.complex(*state.unbind(-1))
    h = (h.mT if terms.transposed else h).unsqueeze(1)
    new = torch.addcmul(x, decay.exp() if terms.log else decay, h)
    seen = h if terms.late else new
    o = terms.read(given, seen if scale == 1 else scale * seen)
    new = new.squeeze(1)
    new = new.mT if terms.transposed else new
    return o, _pairs(new) if terms.complex else new


def scan_batch(
    terms: DiagonalTerms, state: Tensor, lengths: Tensor | None, call: Call
) -> tuple[Tensor, Tensor]:
    """Output and final state of a batch, from ``state [B, ...]``.

    Row b holds ``lengths[b]`` tokens (None: all of them), then padding.

    ``call.backend`` is a decision already: Triton only where it says so.
    """
    if call.backend == "triton":
        from linrec.engines.diagonal.gpu import scan_rows

        return scan_rows(terms, state, lengths, call)
    length = next(iter(terms.tokens.values())).shape[1]
    if terms.selective is not None and call.form == "chunkwise" and only_values(state, *terms.given.values()):
        return scan_values(terms, state, call.scale, call.chunk_size)
    h = torch.complex(*state.unbind(-1)) if terms.complex else state
    h = h.mT if terms.transposed else h
    constant = terms.parallel == "convolution" and length > 0
    if constant and terms.gain is not None and call.form in ("parallel", "chunkwise"):
        each = length if call.form == "parallel" else call.chunk_size or RESPONSE
        o, h = responses(terms, h, lengths, call.scale, each)
    elif constant and call.form == "parallel":
        o, h = convolution(terms, h, lengths, call.scale)
    else:
        chunk = {"recurrent": 1, "step": 1, "parallel": max(length, 1)}.get(call.form)
        scan = _SCANS[terms.parallel if call.form == "parallel" else "chunkwise"]

        def one(part: DiagonalTerms, h: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
            return _one_chunk(part, h, real, call.scale, scan)

        o, h = in_chunks(terms, h, lengths, chunk or call.chunk_size or _chunk_length(h.numel()), one)
    h = h.mT.contiguous() if terms.transposed else h  # only such a state can be given away
    return o, _pairs(h) if terms.complex else h


def _pairs(h: Tensor) -> Tensor:
    """Real and imaginary parts ``[..., 2]``; of no numbers at all, torch cannot take the derivative of a view."""
    return torch.view_as_real(h) if h.numel() else torch.stack([h.real, h.imag], dim=-1)


def _chunk_length(state: int) -> int:
    """A power of two, so that chunks divide into equal blocks."""
    return min(1024, max(16, 2 ** int(math.log2(max(CACHED // max(state, 1), 1)))))


def _one_chunk(
    terms: DiagonalTerms, h: Tensor, real: Tensor | None, scale: float, scan: Scan
) -> tuple[Tensor, Tensor]:
    decay, x = terms.expand(terms.given)
    decay, x = without_padding(terms, decay.expand(-1, x.shape[1], *x.shape[2:]), x, real)
    # What is expanded to more than the tokens is the engine's own, and may be overwritten. (A decay that is constant
    # in time is not contiguous here, unless there is one token.)
    own = terms.recompute and x.shape[1] > 1 and decay.is_contiguous() and not differentiated(decay, x, h)
    if terms.log and scan is not scans.quadratic:
        # Two to some power takes torch a quarter of the time of e to it on a CPU.
        decay = decay.mul_(LOG2_E).exp2_() if own and not decay.is_complex() else decay.exp()
    if own and scan is recurrence:
        scan = recurrence_in_place
    every = scan(decay, x, h)
    seen = torch.cat([h[:, None], every[:, :-1]], dim=1) if terms.late else every
    o = terms.read(terms.given, seen if scale == 1 else scale * seen)
    last = every[:, -1] if x.shape[1] else h
    return o, last.clone() if x.shape[1] > 1 else last  # a view would keep every state of the chunk alive


_SCANS = {
    "chunkwise": recurrence,
    "associative": scans.associative,
    "convolution": scans.associative,
    "quadratic": scans.quadratic,
}

DIAGONAL = DiagonalEngine()
