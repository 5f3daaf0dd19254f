"""Decays and strengths of every row of every chunk, for recurrences with one decay a head.

They are small beside the arguments, so they are formed at once for the whole sequence, in double precision, and cut
by chunk afterwards. The decay between two rows of a chunk is a product of two factors, e^{g_i - m} and e^{m - g_j}
with m a sum near mid-chunk, as long as neither can overflow; in chunks that decay more it is formed exponent by
exponent.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.matrix.plan import Plan, Tensors
from linrec.engines.numerics.checks import readable
from linrec.engines.numerics.decays import LOG2, REACH
from linrec.engines.numerics.scans import exact

TIME = -2


class Gates(NamedTuple):
    """Of one chunk, ``[B, H, R, C, 1]``, with g the inclusive sums of its log-decays.

    ``sums``: g, and the sums that q and a see, in double precision. The rows that read are those of k, where there
    are strengths that erase, and those of q: J = 2 or 1. ``at_q`` = e^{g_q}, ``at_a`` = e^{g_a}, ``pull_a`` = -erase
    e^{g_a}, ``pull`` = ``pull_a`` and ``at_q`` ``[B, H, R, J, C, 1]``. ``to_end`` = e^{g_C - g}, ``whole`` = e^{g_C}
    ``[B H, 1, R, 1]``. ``up_q`` = e^{g_q - m}, ``up_a`` = e^{g_a - m} and ``down`` = e^{m - g} where ``near``.
    ``erased`` = -erase.
    """

    sums: tuple[Tensor, Tensor, Tensor]
    whole: Tensor
    at_q: Tensor
    at_a: Tensor
    pull: Tensor
    pull_a: Tensor | None
    to_end: Tensor
    up_q: Tensor
    up_a: Tensor
    down: Tensor
    write: Tensor | None
    erased: Tensor | None
    near: bool


def chunk_gates(plan: Plan, tensors: Tensors, dtype: torch.dtype) -> list[Gates]:
    """Of every chunk, in the accumulator's ``dtype``."""
    k, v, g = (tensors[name] for name in ("k", "v", "g"))
    assert k is not None and v is not None
    length = v.shape[1]
    if not length or not v.shape[0]:
        return []
    g = v.new_zeros(v.shape[:3], dtype=dtype) if g is None else g
    g, write, erase = (by_chunk(x, k.shape[2], plan.chunk) for x in (g, tensors["write"], tensors["erase"]))
    assert g is not None
    total = exact(g).contiguous().cumsum(TIME)
    in_halvings = total / LOG2  # two to some power takes torch a third of the time of e to it on a CPU
    last, middle = in_halvings[..., -1:, :], plan.chunk // 2
    # A whole number of halvings: scaling by it is exact, so no later decay reaches an earlier row by rounding.
    halvings = in_halvings[..., middle : middle + 1, :].round()
    near, down = _within_reach(in_halvings, halvings), torch.exp2(halvings)
    at_row = in_halvings.exp2()
    # What is seen of the token before: by shifting, total - g would lose digits.
    at = {True: at_row, False: F.pad(at_row[..., :-1, :], (0, 0, 1, 0), value=1.0)}
    sums = {True: total, False: F.pad(total[..., :-1, :], (0, 0, 1, 0))}
    at_q, at_a = at[plan.reads_now], at[plan.predicts_now]
    up_q = at_q / down
    up_a = up_q if at_a is at_q else at_a / down
    erased = None if erase is None else exact(-erase)
    pull_a = None if erased is None else at_a * erased
    pull = torch.stack([at_q] if pull_a is None else [pull_a, at_q], dim=TIME - 1)
    to_end = torch.exp2(last - in_halvings)
    rows = (at_q, at_a, pull, pull_a, to_end, up_q, up_a, down / at_row, write, erased)
    cut = (_cut(None if x is None else x.to(dtype), length, len(near)) for x in rows)
    seen = (total, sums[plan.reads_now], sums[plan.predicts_now])
    totals = zip(*(_cut(x, length, len(near)) for x in seen), strict=True)
    whole = last.exp2().to(dtype).flatten(1, 2).transpose(2, 3).unbind(0)
    return [Gates._make(every) for every in zip(totals, whole, *cut, near, strict=True)]


def by_chunk(x: Tensor | None, heads: int, chunk: int) -> Tensor | None:
    """``[B, T, H R] -> [chunks, B, H, R, C, 1]``, the last chunk filled up with zeros."""
    if x is None:
        return None
    x = F.pad(x, (0, 0, 0, -x.shape[1] % chunk))
    return x.unflatten(2, (heads, -1)).unflatten(1, (-1, chunk)).permute(1, 0, 3, 4, 2)[..., None]


def over_time(x: Tensor, length: int) -> Tensor:
    """The inverse of :func:`by_chunk`."""
    return x[..., 0].permute(1, 0, 4, 2, 3).flatten(1, 2).flatten(2, 3)[:, :length]


def _within_reach(total: Tensor, halvings: Tensor) -> list[bool]:
    """Of each chunk, whether no factor of a decay between two of its rows overflows."""
    if not readable(total):
        return [False] * total.shape[0]
    low, high = torch.aminmax((total - halvings).flatten(1), dim=1)
    reach = torch.stack([-low, high, -halvings.flatten(1).amin(1)]).amax(0)
    return (reach <= REACH / LOG2).tolist()  # False also where it is not a number


def _cut(x: Tensor | None, length: int, chunks: int) -> list[Tensor] | list[None]:
    """Chunk by chunk, the last one at its own length."""
    if x is None:
        return [None] * chunks
    parts = list(x.unbind(0))
    rest = length % x.shape[TIME]
    if rest:
        parts[-1] = parts[-1][..., :rest, :]
    return parts


def between(at: str, n: Gates, diagonal: bool, decay: Tensor) -> Tensor:
    """Fills ``decay`` with e^{at_i - g_j} for rows that q or a sees ("q", "a"); anything finite above the diagonal."""
    up, reader = (n.up_q, n.sums[1]) if at == "q" else (n.up_a, n.sums[2])
    if n.near:
        return torch.mul(up, n.down.mT, out=decay)
    # The exponent is masked, not the result: exp of the upper triangle could overflow.
    exponent = reader - n.sums[0].mT
    hidden = torch.ones(exponent.shape[-2:], dtype=torch.bool, device=up.device).triu(1 if diagonal else 0)
    return decay.copy_(exponent.masked_fill_(hidden, -torch.inf)).exp_()
