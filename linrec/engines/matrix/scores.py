"""Scores with decay between the rows of a chunk, and their adjoint.

M_ij = sum_d x_id y_jd e^{at_x_id - at_y_jd} for j <= i (j < i without the diagonal), else 0. What is above the diagonal
is never only multiplied by zero but replaced by it: a product that the recurrence does not have may be infinite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.matrix.decay_gradient import crossing, crossing_by_channel, earlier, later
from linrec.engines.matrix.terms import Heads
from linrec.engines.numerics.decays import LOG2

SUB_CHUNK = 16


class Scores(NamedTuple):
    """A_qk, A_qb, A_ak, A_ab ``[B, H, R, C, C]``: those that there are; without keys b it is k that writes."""

    qk: Tensor
    qb: Tensor | None = None
    ak: Tensor | None = None
    ab: Tensor | None = None


def chunk_scores(x: Heads, g: Tensor, g_q: Tensor, g_a: Tensor, diagonal: bool) -> Scores:
    """Those of a chunk, in differentiable calls; g its cumulative log-decay, g_q and g_a what of it q and a see.

    q reads its own row with the ``diagonal``.
    """
    A_qk = decayed_scores(x.q, x.k, g_q, g, diagonal=diagonal)
    if x.a is None:
        return Scores(A_qk)
    A_ak = decayed_scores(x.a, x.k, g_a, g, diagonal=False)
    if x.b is None:
        return Scores(A_qk, None, A_ak, A_ak)
    A_ab = decayed_scores(x.a, x.b, g_a, g, diagonal=False)
    return Scores(A_qk, decayed_scores(x.q, x.b, g_q, g, diagonal=diagonal), A_ak, A_ab)


def keep_mask(length: int, diagonal: bool, device: torch.device) -> Tensor:
    """True where row i may read row j."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril(0 if diagonal else -1)


def decayed_scores(x: Tensor, y: Tensor, at_x: Tensor, at_y: Tensor, *, diagonal: bool) -> Tensor:
    """M as above, in differentiable calls.

    ``at_y`` is the inclusive cumulative log-decay, ``at_x`` that or the exclusive one; last dimension 1 or K.
    """
    if at_y.shape[-1] == 1:
        return (x @ y.mT).tril(0 if diagonal else -1) * decay_matrix(at_x, at_y, diagonal, x.dtype)
    keep = keep_mask(x.shape[-2], diagonal, x.device)
    rows = []
    for start, stop in sub_chunks(x.shape[-2]):
        decay = _diagonal_decay(at_x, at_y, keep, start, stop, x.dtype)
        rows.append(_block_row(x, y, at_x, at_y, keep, start, stop, decay))
    return torch.cat(rows, dim=-2)


def decay_matrix(at_x: Tensor, at_y: Tensor, diagonal: bool, dtype: torch.dtype) -> Tensor:
    """e^{at_x_i - at_y_j}, zero above the diagonal, for a decay that all channels share.

    The exponent is masked, not the result: exp of the upper triangle could overflow, and 0 * inf has no gradient.
    """
    keep = keep_mask(at_x.shape[-2], diagonal, at_x.device)
    return (at_x - at_y.mT).to(dtype).masked_fill(~keep, -torch.inf).exp()


def sub_chunks(length: int) -> list[tuple[int, int]]:
    """Bounds of the sub-chunks."""
    return [(start, min(start + SUB_CHUNK, length)) for start in range(0, length, SUB_CHUNK)]


def _block_row(
    x: Tensor, y: Tensor, at_x: Tensor, at_y: Tensor, keep: Tensor, start: int, stop: int, decay: Tensor
) -> Tensor:
    """Rows ``start .. stop`` of the scores with a decay of its own for every channel.

    Left of the diagonal block both factors are taken relative to the decay just before the block, so both are
    <= 1 and the block is one product. On the diagonal the ``decay`` is formed for each (i, j, d).
    """
    xi, yi = x[..., start:stop, :], y[..., start:stop, :]
    here = (
        (xi[..., :, None, :] * yi[..., None, :, :] * decay).sum(-1).where(keep[start:stop, start:stop], 0.0)
    )
    right = x.shape[-2] - stop
    if start == 0:
        return F.pad(here, (0, right))
    from_x, from_y = _relative_decays(at_x, at_y, start, stop, x.dtype)
    left = (xi * from_x) @ (y[..., :start, :] * from_y).mT
    return F.pad(torch.cat([left, here], dim=-1), (0, right))


def _diagonal_decay(
    at_x: Tensor, at_y: Tensor, keep: Tensor, start: int, stop: int, dtype: torch.dtype
) -> Tensor:
    """e^{at_x_i - at_y_j} for each channel of a diagonal block, ``[..., c, c, K]``."""
    at_row, at_column = (at[..., start:stop, :] / LOG2 for at in (at_x, at_y))
    exponent = (at_row[..., :, None, :] - at_column[..., None, :, :]).to(dtype)
    # Two to some power takes torch a tenth of the time of e to it on a CPU.
    return exponent.masked_fill(~keep[start:stop, start:stop, None], -torch.inf).exp2()


def _relative_decays(
    at_x: Tensor, at_y: Tensor, start: int, stop: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Decays of the block's rows and of all columns left of it, relative to the row before the block."""
    reference = at_y[..., start - 1 : start, :]
    from_x = (at_x[..., start:stop, :] - reference).to(dtype).exp()
    from_y = (reference - at_y[..., :start, :]).to(dtype).exp()
    return from_x, from_y


@dataclass
class Decay:
    """The decay between rows of a chunk, for the adjoint written out; every tensor ``[N, C, .]``."""

    at_x: Tensor
    at_y: Tensor
    diagonal: bool
    dtype: torch.dtype
    wider: Decay | None = None  # the same decays with the diagonal
    blocks: dict[int, Tensor] = field(default_factory=dict)  # formed once, by their first row

    @property
    def shared(self) -> bool:
        """Whether all channels have one decay."""
        return self.at_y.shape[-1] == 1

    @property
    def now(self) -> bool:
        """Whether the rows that read see the current token's decay."""
        return self.at_x is self.at_y

    @cached_property
    def matrix(self) -> Tensor:
        """``[N, C, C]``, of a shared decay."""
        if self.wider is not None:
            return self.wider.matrix.tril(-1)
        return decay_matrix(self.at_x, self.at_y, self.diagonal, self.dtype)

    def block(self, start: int, stop: int) -> Tensor:
        """``[N, c, c, K]``, of a sub-chunk."""
        if self.wider is not None:
            return self.wider.block(start, stop)
        if start not in self.blocks:
            keep = keep_mask(self.at_x.shape[1], self.diagonal, self.at_x.device)
            self.blocks[start] = _diagonal_decay(self.at_x, self.at_y, keep, start, stop, self.dtype)
        return self.blocks[start]

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """M ``[N, C, C]``."""
        if self.shared:
            return torch.bmm(x, y.mT).tril_(0 if self.diagonal else -1).mul_(self.matrix)
        keep, at = keep_mask(x.shape[1], self.diagonal, x.device), (self.at_x, self.at_y)
        bounds = sub_chunks(x.shape[1])
        return torch.cat([_block_row(x, y, *at, keep, *b, self.block(*b)) for b in bounds], dim=1)

    def adjoint(self, dm: Tensor, x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
        """Add the gradients of x and y from that of M to dx and dy; that of the log-decays ``[N, C, 1 or K]``."""
        dm = dm.tril_(0 if self.diagonal else -1)
        if self.shared:
            weighted = dm.mul_(self.matrix)
            dx.baddbmm_(weighted, y)
            dy.baddbmm_(weighted.mT, x)
            return crossing(torch.bmm(x, y.mT).tril_().mul_(weighted), self.now)
        dg = torch.zeros_like(x)
        for start, stop in sub_chunks(x.shape[1]):
            here, before = slice(start, stop), slice(0, start)
            weighted, xi = self.block(start, stop) * dm[:, here, here, None], x[:, here, None]
            pairs = weighted * y[:, None, here]
            dx[:, here] += pairs.sum(2)
            dy[:, here] += (weighted * xi).sum(1)
            dg[:, here] += crossing_by_channel(pairs.mul_(xi), self.now)
            if start:
                from_x, from_y = _relative_decays(self.at_x, self.at_y, start, stop, x.dtype)
                left = dm[:, here, before]
                dx_left = from_x * torch.bmm(left, y[:, before] * from_y)
                dy_left = from_y * torch.bmm(left.mT, x[:, here] * from_x)
                dx[:, here] += dx_left
                dy[:, before] += dy_left
                dg[:, here] += later(x[:, here] * dx_left, self.now)
                dg[:, before] += earlier(y[:, before] * dy_left)
        return dg
