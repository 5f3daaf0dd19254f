"""What decays and strengths come to in every row of every chunk, for recurrences with one decay a head.

They are small beside the arguments, so they are formed at once for the whole sequence, in double precision, and cut
by chunk afterwards. The decay between two rows of a chunk is a product of two numbers, e^{G_i - m} and e^{m - G_j}
with m a sum near mid-chunk, as long as neither can overflow; in chunks that decay more it is formed exponent by
exponent.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.checks import readable
from linrec.engines.decays import LOG2, REACH
from linrec.engines.matrix.plan import Memory, Plan, Tensors
from linrec.engines.scans import exact


class Numbers(NamedTuple):
    """Of one chunk, ``[N, C, 1]``, N = B HV, with G the inclusive sums of its log-decays.

    ``sums``: G, and the sums that q and a see, in double precision; ``at_q`` = scale e^{G_q}, ``at_a`` = e^{G_a},
    ``to_end`` = e^{G_C - G}, ``whole`` = e^{G_C} ``[N, 1, 1]``. ``up_q`` = e^{G_q - m}, ``up_a`` = e^{G_a - m} and
    ``down`` = e^{m - G} where ``near``.
    """

    sums: tuple[Tensor, Tensor, Tensor]
    at_q: Tensor
    at_a: Tensor
    to_end: Tensor
    whole: Tensor
    up_q: Tensor
    up_a: Tensor
    down: Tensor
    write: Tensor | None
    erase: Tensor | None
    near: bool


def numbers(plan: Plan, tensors: Tensors, dtype: torch.dtype) -> list[Numbers]:
    """Of every chunk, in the accumulator's ``dtype``."""
    v, g = tensors["v"], tensors["g"]
    assert v is not None
    length = v.shape[1]
    if not length:
        return []
    g = by_chunk(v.new_zeros(v.shape[:3], dtype=dtype) if g is None else g, plan.chunk)
    assert g is not None
    write, erase = (by_chunk(tensors[name], plan.chunk) for name in ("write", "erase"))
    total = exact(g).cumsum(2)
    before = F.pad(total[:, :, :-1], (0, 0, 1, 0))  # by shifting: total - g would lose digits
    last = total[:, :, -1:]
    # A whole number of halvings: scaling by it is exact, so no later decay reaches an earlier row by rounding.
    halvings = total[:, :, plan.chunk // 2 : plan.chunk // 2 + 1].div(LOG2).round()
    near = _within_reach(total, before, halvings * LOG2)
    seen = [(total if now else before) for now in (plan.reads_now, plan.predicts_now)]
    grown = [x.exp() for x in seen]
    parts = (
        *(x.mul(factor) for x, factor in zip(grown, (plan.scale, 1.0), strict=True)),
        (last - total).exp(),
        last.exp(),
        *(x * torch.exp2(-halvings) for x in grown),
        torch.exp2(halvings) / total.exp(),
    )
    sums = zip(*(_cut(x, length) for x in (total, *seen)), strict=True)
    rows = zip(*(_cut(x.to(dtype), length) for x in parts), strict=True)
    strengths = ([None] * len(near) if x is None else _cut(x.to(dtype), length) for x in (write, erase))
    every = zip(sums, rows, *strengths, near, strict=True)
    return [Numbers._make((sums, *rows, *rest)) for sums, rows, *rest in every]


def by_chunk(x: Tensor | None, chunk: int) -> Tensor | None:
    """``[B, T, HV] -> [chunks, B HV, C, 1]``, the last chunk filled up with zeros."""
    if x is None:
        return None
    x = F.pad(x, (0, 0, 0, -x.shape[1] % chunk))
    return x.unflatten(1, (-1, chunk)).permute(1, 0, 3, 2).flatten(1, 2)[..., None]


def over_time(x: Tensor, batch: int, length: int) -> Tensor:
    """The inverse of :func:`by_chunk`."""
    return x[..., 0].unflatten(1, (batch, -1)).permute(1, 0, 3, 2).flatten(1, 2)[:, :length]


def _within_reach(total: Tensor, before: Tensor, middle: Tensor) -> list[bool]:
    if not readable(total):
        return [False] * total.shape[0]
    reach = torch.maximum(torch.maximum(before, total) - middle, middle - total).amax((1, 2, 3))
    return (reach <= REACH).tolist()  # False also where it is not a number


def _cut(x: Tensor, length: int) -> list[Tensor]:
    """Chunk by chunk, the last one at its own length."""
    parts = list(x.unbind(0))
    rest = length % x.shape[2]
    if rest:
        parts[-1] = parts[-1][:, :rest]
    return parts


def between(at: str, n: Numbers, diagonal: bool, memory: Memory) -> Tensor:
    """e^{at_i - G_j} ``[N, C, C]`` for rows that q or a sees ("q", "a"), zero above the diagonal."""
    up, reader = (n.up_q, n.sums[1]) if at == "q" else (n.up_a, n.sums[2])
    count, size, _ = up.shape
    decay = memory.take("between_" + at, up, count, size, size)
    below = 0 if diagonal else -1
    if n.near:
        return torch.mul(up, n.down.mT, out=decay).tril_(below)
    # The exponent is masked, not the result: exp of the upper triangle could overflow.
    exponent = memory.take("exponent", n.sums[0], count, size, size)
    torch.sub(reader, n.sums[0].mT, out=exponent)
    hidden = torch.ones(size, size, dtype=torch.bool, device=up.device).triu(below + 1)
    return decay.copy_(exponent.masked_fill_(hidden, -torch.inf)).exp_()
