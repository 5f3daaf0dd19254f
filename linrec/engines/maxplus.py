"""The running maximum that turns unbounded exponential gates into decays <= 1.

With a log forget gate f_t and a log input gate i_t that may be any number, e^{i_t} overflows. Dividing the state
by e^{m_t}, m_t = max(f_t + m_{t-1}, i_t), leaves the decay f_t + m_{t-1} - m_t <= 0 and the input weight
e^{i_t - m_t} <= 1. m is a gauge: any m gives the same normalised output, so its rounding is harmless as long
as decays and weights come from the same rounded m (then the decay may exceed 0 by a rounding of m).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from linrec.engines.scans import exact

EMPTY = -1e38  # m of an empty state: minus infinity for every purpose, without the nan of inf - inf
NOTHING = (
    -750.0
)  # e^-750 is zero in double precision; a longer way down would cost cumulative sums their digits


class Stabilised(NamedTuple):
    """g and weight like the gates, ``[B, T, ...]``; m after each token and before it, of the same shape."""

    g: Tensor
    weight: Tensor
    m: Tensor
    before: Tensor


def running_max(forget: Tensor, gain: Tensor, start: Tensor) -> Tensor:
    """m_t = max(forget_t + m_{t-1}, gain_t), all t at once: m_t = F_t + max(m_0, max_{j <= t} (gain_j - F_j)).

    forget and gain ``[B, T, ...]``, start ``[B, ...]``; F is the cumulative sum of forget.
    """
    if gain.shape[1] == 0:
        return gain
    total = exact(forget).cumsum(1)
    highest = (exact(gain) - total).cummax(1).values
    return (total + torch.maximum(highest, exact(start)[:, None])).to(gain.dtype)


def stabilised(forget: Tensor, gain: Tensor, start: Tensor, lengths: Tensor | None = None) -> Stabilised:
    """Decays and input weights relative to the running maximum.

    With ``lengths``, row b holds that many tokens and then padding, which leaves m as it is.
    """
    if lengths is not None:
        real = torch.arange(gain.shape[1], device=gain.device) < lengths[:, None]
        real = real.reshape(*real.shape, *[1] * (gain.dim() - 2))
        forget, gain = torch.where(real, forget, 0.0), torch.where(real, gain, EMPTY)
    m = running_max(forget, gain, start)
    before = torch.cat([start[:, None], m[:, :-1]], dim=1)[:, : m.shape[1]]
    # before - m is exact, forget + before would be rounded to the digits that a large m has left
    return Stabilised((forget + (before - m)).clamp(min=NOTHING), (gain - m).exp(), m, before)


def stabiliser(f: Tensor, i: Tensor, m0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m_t = max(f_t + m_{t-1}, i_t); returns (m, g, weight), g_t = f_t + m_{t-1} - m_t and weight_t = e^{i_t - m_t}.

    f (log-decay) and i (log input gate) ``[B, T, ...]``, m0 ``[B, ...]``; g and weight define an ordinary linear
    recurrence whose state is e^{-m_t} times the true one. m is a gauge, so no derivative runs through it, except
    through m0: the entry state is stored in m0's units.
    """
    m = running_max(f.detach(), i.detach(), m0.detach())
    before = torch.cat([m0[:, None], m[:, :-1]], dim=1)
    # As above; the excess of a decay over 0 by the rounding of m cancels over the steps, so it must not be taken off.
    return m, f + (before - m), (i - m).exp()
