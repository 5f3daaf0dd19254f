"""Ways to compute h_t = a_t * h_{t-1} + x_t, elementwise, along the time axis of ``[B, T, ...]`` tensors.

None divides by a decay: ``cumsum(x / A) * A`` overflows as soon as a product of decays is small.
``a`` may have a batch axis of length one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from linrec.engines.numerics.checks import readable, transformed

EMPTY = -1e38  # running maximum of nothing: minus infinity for every purpose, without the nan of inf - inf
NOTHING = (
    -750.0
)  # e^-750 is zero in double precision; a longer way down would cost cumulative sums their digits
SMALL = 1 << 12  # numbers that are written sooner than looked at


def associative(a: Tensor, x: Tensor, start: Tensor) -> Tensor:
    """Every h_t, for any a ``[1 or B, T, ...]``: negative, zero or complex. x ``[B, T, ...]``, start ``[B, ...]`` is
    h_0. Work T, depth log T."""
    first = x[:, :1] + a[:, :1] * start[:, None]
    return _scan(a, torch.cat([first, x[:, 1:]], dim=1))


def _scan(a: Tensor, x: Tensor) -> Tensor:
    """Neighbours are joined, (a2, x2) after (a1, x1) being (a1 a2, a2 x1 + x2); the half as long problem
    gives every second h, and one more step gives the others."""
    length = x.shape[1]
    if length < 2:
        return x
    left, right = slice(0, length - 1, 2), slice(1, None, 2)
    second = _scan(a[:, left] * a[:, right], a[:, right] * x[:, left] + x[:, right])
    rest = slice(2, None, 2)
    first = torch.cat([x[:, :1], a[:, rest] * second[:, : (length - 1) // 2] + x[:, rest]], dim=1)
    woven = torch.stack([first[:, : length // 2], second], dim=2).flatten(1, 2)
    return woven if length % 2 == 0 else torch.cat([woven, first[:, -1:]], dim=1)


def quadratic(g: Tensor, x: Tensor, start: Tensor) -> Tensor:
    """Every h_t as one masked product, h_t = e^{G_t} h_0 + sum_{j <= t} e^{G_t - G_j} x_j; a = e^g, g real or
    complex with a real part <= 0. g ``[1 or B, T, ...]``, x ``[B, T, ...]``, start ``[B, ...]``. Memory grows with T
    squared."""
    length = x.shape[1]
    total = exact(floored(g)).cumsum(1)
    keep = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    keep = keep.reshape(length, length, *[1] * (x.dim() - 2))
    # The exponent is masked, not the result: exp of the upper triangle could overflow, and 0 * inf has no gradient.
    exponent = (total[:, :, None] - total[:, None]).masked_fill(~keep, -torch.inf)
    weights = exponent.to(x.dtype).exp()
    return (weights * x[:, None]).sum(2) + total.to(x.dtype).exp() * start[:, None]


def ladder(log_a: Tensor, count: int) -> Tensor:
    """a^0, a^1, ..., a^(count - 1) of each a = e^{log_a}, ``log_a [*S]``: ``[count, *S]``, in log_a's dtype.

    Products of two powers of few, so that few exponentials are taken. All in double precision: in single precision the
    phase n * angle would be lost after some thousand steps.
    """
    few, log_a = max(math.isqrt(count), 1), floored(log_a)

    def powers(exponents: Tensor) -> Tensor:
        n = exact(exponents.to(log_a.real.dtype)).reshape(-1, *[1] * log_a.dim())
        return (n * exact(log_a)).exp()

    low = powers(torch.arange(few, device=log_a.device))
    high = powers(torch.arange(0, count, few, device=log_a.device))
    return (high[:, None] * low).flatten(0, 1)[:count].to(log_a.dtype)


def convolve(kernel: Tensor, x: Tensor) -> Tensor:
    """sum_{j <= t} kernel_{t-j} x_j by FFT; kernel ``[T, ...]``, x ``[B, T, ...]``, both real or both complex."""
    length = x.shape[1]
    if not x.numel():  # no Fourier transform takes that
        return kernel * x
    size = 2 * length
    if x.is_complex():
        return torch.fft.ifft(torch.fft.fft(kernel, size, 0) * torch.fft.fft(x, size, 1), dim=1)[:, :length]
    return torch.fft.irfft(torch.fft.rfft(kernel, size, 0) * torch.fft.rfft(x, size, 1), size, 1)[:, :length]


def floored(g: Tensor) -> Tensor:
    """Log-decays g ``[...]`` of at least ``NOTHING``, where e^g is zero already: a reset, -inf as well, stays exact,
    and sums over it stay finite and keep the digits of their other terms. The derivative through a reset is zero. Of
    complex ones that holds of the real part.
    """
    if g.is_complex():
        return torch.complex(floored(g.real), g.imag)
    looks = g.numel() > SMALL and g.is_cpu and readable(g) and not transformed(g)
    if looks and bool(
        g.amin() >= NOTHING
    ):  # reading costs less than writing; False also where it is not a number
        return g
    return g.clamp(min=NOTHING)


def exact(x: Tensor) -> Tensor:
    """x ``[...]`` in double precision where the device has it: sums of log-decays are only used in differences."""
    if x.device.type == "mps":
        return x
    return x.to(torch.complex128 if x.is_complex() else torch.float64)
