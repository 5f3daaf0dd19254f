"""The diagonal recurrence h_t = a_t * h_{t-1} + x_t, elementwise; a real of any sign, zero, or complex.

.. code-block:: text

    a_t, x_t = expand(tokens_t);   h_t = a_t * h_{t-1} + x_t;   o_t = read(tokens_t, scale h_t)

A rule gives its tokens in their small layout and says how one stretch of them expands to decays and inputs:
selective state spaces have N states a channel, and only one chunk of them exists at a time. ``read`` sees
h_{t-1} instead of h_t if ``late``. A complex state is stored as pairs of real numbers, ``[..., 2]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from linrec.engines import scans
from linrec.engines.backends import auto_on, chosen_backend
from linrec.engines.checks import checked_state, differentiated
from linrec.engines.forward_mode import forward_mode
from linrec.engines.recurrence import recurrence, recurrence_in_place
from linrec.packing import by_segment
from linrec.rule import Call, Terms

if TYPE_CHECKING:
    from linrec.engines.selective import Selective

CACHED = 2**20  # numbers of one expanded tensor that stay in cache; a chunk is as long as that allows
RESPONSE = 64  # tokens of a chunk whose output is a convolution
LOG2_E = 1 / math.log(2)

Tokens = Mapping[str, Tensor]
Scan = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class DiagonalTerms(Terms):
    """``tokens`` ``[B, T, ...]`` by name; ``expand`` and ``read`` pointwise in time; ``channels`` the state's shape.

    ``expand`` returns the decay ``[B or 1, L or 1, *channels]``, its logarithm if ``log``, and the input
    ``[B, L, *channels]``. ``recompute`` says that the expanded tensors are much larger than the tokens: the
    backward pass then expands each chunk again instead of keeping all of them. ``constants``, without a time axis, are
    what expand and read find beside the tokens: the engine knows of all that is read again. ``transposed`` says that
    expand and read see the last two axes of the state the other way round, because long rows are quicker.
    ``parallel`` is the algorithm of the parallel form; "convolution" is for a decay that is constant in time,
    and ``gain`` ``[*channels]`` then says that the input is gain * x_t with tokens["x"] ``[B, T, *channels[:-1]]`` and
    that ``read`` is linear in h alone: parallel and chunkwise convolve tokens["x"] with the output's response.
    ``selective`` describes the outer products behind expand and read, where they have that structure.
    Tokens may be in lower precision than the rest; expand and read see them in accumulator precision.
    ``fresh`` is set by the engine where the call starts from the empty state.
    """

    tokens: Tokens
    expand: Callable[[Tokens], tuple[Tensor, Tensor]]
    channels: tuple[int, ...]
    read: Callable[[Tokens, Tensor], Tensor] = lambda tokens, h: h
    log: bool = True
    complex: bool = False
    late: bool = False
    recompute: bool = False
    transposed: bool = False
    constants: Tokens = field(default_factory=dict)
    parallel: Literal["associative", "quadratic", "convolution"] = "associative"
    gain: Tensor | None = None
    selective: Selective | None = None
    fresh: bool = False

    def over_time(self) -> dict[str, Tensor]:
        """The tokens."""
        return dict(self.tokens)

    @property
    def given(self) -> dict[str, Tensor]:
        """What expand and read see."""
        return {**self.tokens, **self.constants}

    def holding(self, tensors: Iterable[Tensor]) -> DiagonalTerms:
        """The same with other tokens and constants, given in their order."""
        found = iter(tensors)
        tokens = {name: next(found) for name in self.tokens}
        return replace(self, tokens=tokens, constants={name: next(found) for name in self.constants})

    def widened(self) -> DiagonalTerms:
        """The same with all tokens in accumulator precision."""
        dtype = self.accumulator
        return replace(self, tokens={name: x.to(dtype) for name, x in self.tokens.items()})

    def reading(self, read: Callable[[Tokens, Tensor], Tensor], **more: Tensor) -> DiagonalTerms:
        """The same recurrence read by ``read``, which needs ``more`` tokens."""
        return replace(self, tokens={**self.tokens, **more}, read=read)


def gated_terms(g: Tensor, x: Tensor) -> DiagonalTerms:
    """h_t = e^{g_t} h_{t-1} + x_t with g and x ``[B, T, ...]``, small enough to be tokens themselves."""
    return DiagonalTerms(
        {"g": g, "x": x}, lambda t: (t["g"], t["x"]), channels=tuple(x.shape[2:]), parallel="quadratic"
    )


OneChunk = Callable[[DiagonalTerms, Tensor, Tensor | None], tuple[Tensor, Tensor]]


class DiagonalEngine:
    """See :mod:`linrec.engines.diagonal`."""

    name = "diagonal"

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Everything after the arguments happens in float32, or float64 for float64 inputs."""
        return torch.float64 if dtype == torch.float64 else torch.float32

    def init_state(self, terms: DiagonalTerms, segments: int) -> Tensor:
        """Zeros ``[segments, *channels]``, or ``[segments, *channels, 2]`` if complex, in accumulator precision."""
        first = next(iter(terms.tokens.values()))
        shape = segments, *terms.channels, *([2] if terms.complex else [])
        return first.new_zeros(shape, dtype=terms.accumulator)

    def auto_backend(self, device: str) -> str:
        """What ``backend="auto"`` runs on this kind of device."""
        return auto_on(device)

    def run(self, terms: DiagonalTerms, state: Tensor | None, call: Call, who: str) -> tuple[Tensor, Tensor]:
        """Output ``[B, T, ...]`` in accumulator precision, and the final state."""
        convolved = call.form == "parallel" and terms.parallel == "convolution"
        if not (convolved and call.backend == "auto"):
            call = call._replace(backend=chosen_backend(call, who, *terms.tokens.values()))
        empty = self.init_state(terms, terms.segments(call))
        terms = replace(terms, fresh=state is None)
        state = empty if state is None else checked_state(state, empty, who)
        if call.backend == "triton" and (terms.selective is not None or not terms.recompute):
            from linrec.engines.diagonal_gpu import scan_packed

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


def scan_batch(
    terms: DiagonalTerms, state: Tensor, lengths: Tensor | None, call: Call
) -> tuple[Tensor, Tensor]:
    """Output and final state of a batch; row b holds ``lengths[b]`` tokens (None: all of them), then padding.

    ``call.backend`` is a decision already: Triton only where it says so.
    """
    if call.backend == "triton":
        from linrec.engines.diagonal_gpu import scan_rows

        return scan_rows(terms, state, lengths, call)
    h = torch.complex(*state.unbind(-1)) if terms.complex else state
    h = h.mT if terms.transposed else h
    length = next(iter(terms.tokens.values())).shape[1]
    constant = terms.parallel == "convolution" and length > 0
    if constant and terms.gain is not None and call.form in ("parallel", "chunkwise"):
        each = length if call.form == "parallel" else call.chunk_size or RESPONSE
        o, h = _responses(terms, h, lengths, call.scale, each)
    elif constant and call.form == "parallel":
        o, h = _convolution(terms, h, lengths, call.scale)
    else:
        chunk = {"recurrent": 1, "step": 1, "parallel": max(length, 1)}.get(call.form)
        scan = _SCANS[terms.parallel if call.form == "parallel" else "chunkwise"]

        def one(part: DiagonalTerms, h: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
            return _one_chunk(part, h, real, call.scale, scan)

        o, h = in_chunks(terms, h, lengths, chunk or call.chunk_size or _chunk_length(h.numel()), one)
    h = h.mT if terms.transposed else h
    return o, _pairs(h) if terms.complex else h


def _pairs(h: Tensor) -> Tensor:
    """Real and imaginary parts ``[..., 2]``; of no numbers at all, torch cannot take the derivative of a view."""
    return torch.view_as_real(h) if h.numel() else torch.stack([h.real, h.imag], dim=-1)


def in_chunks(
    terms: DiagonalTerms, h: Tensor, lengths: Tensor | None, chunk: int, one_chunk: OneChunk
) -> tuple[Tensor, Tensor]:
    """Chunk after chunk of ``chunk`` tokens; token by token is a chunk of one."""
    outputs, constants = [], tuple(terms.constants.values())
    # split, because the gradients of its parts are joined once; those of slices are each padded to full length
    parts = zip(*(x.split(chunk, dim=1) for x in terms.tokens.values()), strict=True)
    for number, part in enumerate(parts):
        real = None if lengths is None else _real(lengths, number * chunk, part[0].shape[1])

        def one(h: Tensor, *tensors: Tensor, real: Tensor | None = real) -> tuple[Tensor, Tensor]:
            return one_chunk(terms.holding(tensors), h, real)

        tensors = h, *part, *constants
        o, h = _recomputed(one, *tensors) if terms.recompute and chunk > 1 else one(*tensors)
        outputs.append(o)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), h


def _chunk_length(state: int) -> int:
    """A power of two, so that chunks divide into equal blocks."""
    return min(1024, max(16, 2 ** int(math.log2(max(CACHED // max(state, 1), 1)))))


def without_padding(
    terms: DiagonalTerms, decay: Tensor, x: Tensor, real: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Expanded decays and inputs; where ``real`` ``[B, L]`` is false they leave the state as it is."""
    if real is None:
        return decay, x
    real = real.reshape(*real.shape, *[1] * (x.dim() - 2))
    return torch.where(real, decay, 0.0 if terms.log else 1.0), torch.where(real, x, 0.0)


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


def _real(lengths: Tensor, start: int, count: int) -> Tensor:
    return torch.arange(start, start + max(count, 0), device=lengths.device) < lengths[:, None]


def _recomputed(one: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Keep nothing of a chunk but ``tensors``, all that a caller may change in place: torch looks for that there.

    torch.func's transforms and forward mode cannot, and keep everything."""
    if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or forward_mode():
        return one(*tensors)
    return checkpoint(one, *tensors, use_reentrant=False, preserve_rng_state=False)


def _convolution(
    terms: DiagonalTerms, h: Tensor, lengths: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Constant decay: the response to an input is a power of it, and the whole sequence one FFT product."""
    decay, x = terms.expand(terms.given)
    ladder = scans.ladder(decay[0, 0], x.shape[1] + 1)
    entry = ladder[-1] if lengths is None else ladder.index_select(0, lengths)
    at_end = x if lengths is None else _right_aligned(x, lengths)
    o = terms.read(terms.given, scale * (ladder[1:] * h[:, None] + scans.convolve(ladder[:-1], x)))
    return o, entry * h + (ladder[:-1].flip(0) * at_end).sum(1)


def _responses(
    terms: DiagonalTerms, h: Tensor, lengths: Tensor | None, scale: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """Constant decay and gain: a chunk's output is one FFT product with the output's response, beside what its entry
    state becomes; no state within a chunk is formed. Powers and response are those of every chunk."""
    x = terms.tokens["x"]
    assert terms.gain is not None
    decay, _ = terms.expand({**terms.given, "x": x[:, :1]})
    ladder = scans.ladder(decay[0, 0], min(chunk, x.shape[1]) + 1)
    response = ladder[:-1] * terms.gain
    seen = terms.read(terms.given, scale * response)
    backwards = response.flip(0).movedim(0, -2).contiguous()

    def one(real: Tensor | None, held: bool, h: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
        count = part.shape[1]
        o = scans.convolve(seen[:count], part)
        if held:
            o = o + terms.read(terms.given, scale * ladder[1 : count + 1] * h[:, None])
        at_end = (part if real is None else _right_aligned(part, real)).to(response.dtype)
        written = torch.einsum("...tn,bt...->b...n", backwards[..., -count:, :], at_end)
        return o, (ladder[count] if real is None else ladder.index_select(0, real)) * h + written

    outputs = []
    for number, part in enumerate(x.split(chunk, dim=1)):
        real = None if lengths is None else (lengths - number * chunk).clamp(0, part.shape[1])
        now = partial(one, real, number > 0 or not terms.fresh)
        o, h = _recomputed(now, h, part) if chunk < x.shape[1] else now(h, part)
        outputs.append(o)
    return torch.cat(outputs, dim=1), h


def _right_aligned(x: Tensor, lengths: Tensor) -> Tensor:
    """Each row's tokens moved to the end of the row, zeros before them: then all rows share their powers."""
    place = torch.arange(x.shape[1], device=x.device) - (x.shape[1] - lengths)[:, None]
    place = place.reshape(*place.shape, *[1] * (x.dim() - 2))
    return torch.where(place >= 0, x.gather(1, place.clamp(min=0).expand_as(x)), 0.0)


_SCANS = {
    "chunkwise": recurrence,
    "associative": scans.associative,
    "convolution": scans.associative,
    "quadratic": scans.quadratic,
}

DIAGONAL = DiagonalEngine()
