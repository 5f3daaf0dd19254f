"""Rotating states: pairs of key channels that turn by an angle at every token, as complex decays do.

A state whose pairs turn by -theta_t at token t reads the same as a state that stands still while q and k are
rotated by the cumulative angle. Here the angle starts at zero in every call and the state is turned back at its
end, so no angle is carried along and none grows with the sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cumulative_angle(theta: Tensor) -> Tensor:
    """Inclusive sum of the angles theta ``[B, T, HV, J]`` over time, in float64 where the device has it."""
    return theta.to(theta.dtype if theta.device.type == "mps" else torch.float64).cumsum(1)


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate the channel pairs (2i, 2i + 1) of ``x [..., K]`` by ``angle [..., J]``, i < J <= K / 2."""
    paired = 2 * angle.shape[-1]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., 0:paired:2], x[..., 1:paired:2]
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
    return torch.cat([turned, x[..., paired:]], dim=-1)


def turn_rows(state: Tensor, angle: Tensor) -> Tensor:
    """The same for the key channels of a state ``[B, HV, K, V]``, angle ``[B, HV, J]``."""
    return turn(state.mT, angle[:, :, None]).mT
