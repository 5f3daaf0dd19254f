"""Decays that are constant in time: outputs are convolutions, by FFT, with the powers of the decay."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from linrec.engines.diagonal.chunks import recomputed
from linrec.engines.diagonal.terms import DiagonalTerms
from linrec.engines.numerics import scans


def convolution(
    terms: DiagonalTerms, h: Tensor, lengths: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Constant decay: the response to an input is a power of it, and the whole sequence one FFT product.

    h ``[B, ...]``, lengths ``[B]``.
    """
    decay, x = terms.expand(terms.given)
    ladder = scans.ladder(decay[0, 0], x.shape[1] + 1)
    entry = ladder[-1] if lengths is None else ladder.index_select(0, lengths)
    at_end = x if lengths is None else _right_aligned(x, lengths)
    o = terms.read(terms.given, scale * (ladder[1:] * h[:, None] + scans.convolve(ladder[:-1], x)))
    return o, entry * h + (ladder[:-1].flip(0) * at_end).sum(1)


def responses(
    terms: DiagonalTerms, h: Tensor, lengths: Tensor | None, scale: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """Constant decay and gain: a chunk's output is one FFT product with the output's response, beside what its entry
    state, h ``[B, ...]``, becomes; no state within a chunk is formed. lengths ``[B]``. Powers and response are those
    of every chunk."""
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
        written = torch.einsum("...TN,BT...->B...N", backwards[..., -count:, :], at_end)
        return o, (ladder[count] if real is None else ladder.index_select(0, real)) * h + written

    outputs = []
    for number, part in enumerate(x.split(chunk, dim=1)):
        real = None if lengths is None else (lengths - number * chunk).clamp(0, part.shape[1])
        now = partial(one, real, number > 0 or not terms.fresh)
        o, h = recomputed(now, h, part) if chunk < x.shape[1] else now(h, part)
        outputs.append(o)
    return torch.cat(outputs, dim=1), h


def _right_aligned(x: Tensor, lengths: Tensor) -> Tensor:
    """Each row's tokens moved to the end of the row, zeros before them: then all rows share their powers."""
    place = torch.arange(x.shape[1], device=x.device) - (x.shape[1] - lengths)[:, None]
    place = place.reshape(*place.shape, *[1] * (x.dim() - 2))
    return torch.where(place >= 0, x.gather(1, place.clamp(min=0).expand_as(x)), 0.0)
