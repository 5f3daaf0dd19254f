"""The running maximum that turns unbounded exponential gates into decays and weights of at most one."""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.engines.scans import exact


def stabiliser(f: Tensor, i: Tensor, m0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m_t = max(f_t + m_{t-1}, i_t); returns (m, g, weight), g_t = f_t + m_{t-1} - m_t and weight_t = e^{i_t - m_t}.

    f (log-decay) and i (log input gate) ``[B, T, ...]``, m0 ``[B, ...]``; g and weight define an ordinary linear
    recurrence whose state is e^{-m_t} times the true one. m is a gauge, so no derivative runs through it, except
    through m0: the entry state is stored in m0's units. In closed form m_t = F_t + max(m_0, max_{j <= t} (i_j - F_j))
    with F the cumulative sum of f.
    """
    total = exact(f.detach()).cumsum(1)
    highest = (exact(i.detach()) - total).cummax(1).values
    m = (total + torch.maximum(exact(m0.detach())[:, None], highest)).to(f.dtype)
    before = torch.cat([m0[:, None], m[:, :-1]], dim=1)
    # The difference of the two m is exact, f + before would not be. A decay may exceed 0 by the rounding of m; taking
    # that off would break the agreement of decays and weights, and it cancels over the steps.
    return m, f + (before - m), (i - m).exp()
