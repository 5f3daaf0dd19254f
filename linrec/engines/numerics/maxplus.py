"""The running maximum that turns unbounded exponential gates into decays and weights of at most one."""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.engines.numerics.checks import readable, transformed
from linrec.engines.numerics.scans import EMPTY, exact

STRONG = -1e3  # log-decays below would cost cumulative sums their digits


def stabiliser(f: Tensor, i: Tensor, m0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m_t = max(f_t + m_{t-1}, i_t); returns (m, g, weight), g_t = f_t + m_{t-1} - m_t and weight_t = e^{i_t - m_t}.

    Log-decay and log input gate f, i ``[B, T, ...]``, m0 ``[B, ...]``; g and weight define an ordinary linear
    recurrence whose state is e^{-m_t} times the true one. m is a gauge, so no derivative runs through it, except
    through m0: the entry state is stored in m0's units. Either gate may be -inf, a full reset and a token not written.
    """
    if f.shape[1] == 1:
        before = m0[:, None]
        m = torch.maximum((f + before).detach(), i.detach()).clamp(min=EMPTY)
    else:
        m = _running(*(exact(x.detach()) for x in (f, i, m0))).clamp(min=EMPTY).to(f.dtype)
        before = torch.cat([m0[:, None], m[:, :-1]], dim=1)
    # The difference of the two m is exact, f + before would not be. A decay may exceed 0 by the rounding of m; taking
    # that off would break the agreement of decays and weights, and it cancels over the steps.
    return m, f + (before - m), (i - m).exp()


def _running(f: Tensor, i: Tensor, m0: Tensor) -> Tensor:
    """In closed form m_t = F_t + max(m_0, max_{j <= t} (i_j - F_j)) with F the cumulative sum of f; with strong decays
    by doubling, where sums are never subtracted."""
    if f.shape[1] > 1 and readable(f) and not transformed(f) and bool((f >= STRONG).all()):
        total = f.cumsum(1)
        return total + torch.maximum(m0[:, None], (i - total).cummax(1).values)
    m, reach = torch.cat([torch.maximum(i[:, :1], f[:, :1] + m0[:, None]), i[:, 1:]], dim=1), 1
    while reach < m.shape[1]:
        top = torch.maximum(m[:, reach:], f[:, reach:] + m[:, :-reach])
        m = torch.cat([m[:, :reach], top], dim=1)
        f = torch.cat([f[:, :reach], f[:, reach:] + f[:, :-reach]], dim=1)
        reach *= 2
    return m
