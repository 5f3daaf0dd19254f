"""The diagonal engine through Triton: the selective kernel where the terms have that structure, else the general scan.

Packed sequences are the kernels' own: a row of states a segment, no padding. The exception are rules that expand their
tokens to many states without the selective structure; these go segment by segment in chunks, like the torch backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.engines.diagonal.chunks import in_chunks, without_padding
from linrec.engines.diagonal.terms import DiagonalTerms, Selective
from linrec.engines.numerics.checks import differentiated
from linrec.rule import Call

CHUNK = 1024  # tokens that are expanded at a time


def scan_packed(terms: DiagonalTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Output and final state of a batch, or of packed segments, from ``state [B or segments, ...]``."""
    first = next(iter(terms.tokens.values()))
    bounds = None if call.bounds is None else torch.tensor(call.bounds, device=first.device)
    if terms.selective is not None:
        return _selective(terms, terms.selective, state, bounds, call.scale)
    return _expanded(terms, state, bounds, None, call.scale)


def scan_rows(
    terms: DiagonalTerms, state: Tensor, lengths: Tensor | None, call: Call
) -> tuple[Tensor, Tensor]:
    """As the engine's ``scan_batch``: ``state [B, ...]``, row b holds ``lengths[b]`` tokens, then padding."""
    length = next(iter(terms.tokens.values())).shape[1]
    chunk = (call.chunk_size or CHUNK) if terms.recompute else max(length, 1)

    def one(part: DiagonalTerms, state: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        return _expanded(part, state, None, real, call.scale)

    return in_chunks(terms, state, lengths, chunk, one)


def _expanded(
    terms: DiagonalTerms, state: Tensor, bounds: Tensor | None, real: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    from linrec.kernels.diagonal import diagonal_scan

    decay, x = without_padding(terms, *terms.expand(terms.given), real)
    start = state.mT if terms.transposed else state
    log, shape = terms.log, start.shape
    if terms.complex:
        decay = decay.exp() if log else decay
        log = False
        decay, x = torch.view_as_real(decay.resolve_conj()), torch.view_as_real(x.resolve_conj())
    inner = (2, -2) if terms.complex else (2, -1)
    decay = decay.expand(-1, -1, *x.shape[2:]).flatten(*inner)
    start = start.flatten(1, inner[1])
    h, last = diagonal_scan(decay, x.flatten(*inner), start, bounds, log, terms.late)
    h, last = h.unflatten(2, x.shape[2:-1] if terms.complex else x.shape[2:]), last.reshape(shape)
    h = torch.view_as_complex(h) if terms.complex else h
    o = terms.read(terms.given, h if scale == 1 else scale * h)
    return o, last.mT if terms.transposed else last


def _selective(
    terms: DiagonalTerms, what: Selective, state: Tensor, bounds: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    from linrec.kernels.selective import selective_scan

    tokens = terms.tokens
    rate, into, out = (what.of(tokens, name) for name in ("rate", "into", "out"))
    keep = differentiated(tokens["step"], tokens["x"], rate, into, out, state) or (
        what.skip is not None and differentiated(what.skip)
    )
    o, last, _ = selective_scan(
        tokens["step"], tokens["x"], rate, into, out, what.skip, state, bounds, scale, what.exponential, keep
    )
    return o, last
