"""The gradient of log-decays, made of what crosses a token and of nothing that would have to cancel.

The log-decay of token t scales whatever is written before it and read at it or later. In a chunk, with W_ij what reader
i has of row j times its gradient (the decay between the two included),

.. code-block:: text

    dg_t = sum_{j < t <= i} W_ij + sum_{i >= t} seen_i + sum_{j < t} kept_j + passed

where seen_i is what reader i has of the entry state, kept_j what the exit state has of row j and passed what it has of
the entry state, each times its gradient. (A reader that sees the decay up to the token before: i > t, i >= t -> i > t.)

The same is the sum over all i >= t of q dq + a da - k dk - b db, and of h_next dh_next. It needs no W, but what does
not cross t has to cancel in it. Where decays are strong that is nearly all, and a gradient that adds up over all
tokens, such as that of a rate a head, loses three digits in single precision. So each path does what it can afford:

* one decay a head: W is at hand, and its rows less its columns are summed in double precision (``scalar.py``);
* decays formed pair by pair: the first sum as it stands (``scores.py``);
* decays relative to mid-chunk, by channel: q dq - k dk of what is within the chunk and read after the next decay
  (``relative.py``). Such a chunk decays by e^-80 at most, so what cancels is not large.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.numerics.products import small_products


def later(x: Tensor, now: bool = True) -> Tensor:
    """Sums ``[..., C, n]`` of x over all rows from each on, or of those after it."""
    total = x.flip(-2).cumsum(-2).flip(-2)
    return total if now else F.pad(total[..., 1:, :], (0, 0, 0, 1))


def earlier(x: Tensor) -> Tensor:
    """Sums ``[..., C, n]`` of x over all rows before each."""
    return F.pad(x.cumsum(-2)[..., :-1, :], (0, 0, 1, 0))


def crossing(pairs: Tensor, now: bool) -> Tensor:
    """The first sum ``[..., C, 1]``, of W ``[..., C, C]``, for readers that see the current token's decay or do not."""
    before = pairs.new_ones(pairs.shape[-2:]).triu(1)
    return (pairs @ before).tril_(0 if now else -1).sum(-2).unsqueeze(-1)


@small_products()
def crossing_by_channel(pairs: Tensor, now: bool) -> Tensor:
    """The same of every channel, ``[N, C, K]``; pairs ``[N, C, C, K]``."""
    count, size, _, width = pairs.shape
    ones = pairs.new_ones(size, size)
    crosses = (ones.triu(0 if now else 1)[:, :, None] * ones.tril(-1)[:, None]).view(1, size, size * size)
    return torch.bmm(crosses.expand(count, -1, -1), pairs.view(count, size * size, width))
