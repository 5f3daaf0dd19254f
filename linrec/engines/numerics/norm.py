"""RMSNorm with or without a gate, through one Triton kernel on a GPU, in four calls for one token on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.numerics.backends import prefers_triton
from linrec.engines.numerics.checks import only_values
from linrec.engines.numerics.forward_mode import silu


def gated_rms_norm(
    x: Tensor,
    weight: Tensor,
    gate: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "silu",
    gate_first: bool = False,
    groups: int = 1,
    backend: str = "auto",
) -> Tensor:
    """``rms(x) w act(gate)``, or ``rms(x act(gate)) w`` with ``gate_first``; act is "silu" or "sigmoid".

    x and gate ``[..., width]``, weight ``[width]``; the mean square is over each of ``groups`` equal parts of a row.
    """
    tensors = [x, weight] if gate is None else [x, weight, gate]
    if (gate is None or gate.dtype == x.dtype) and prefers_triton(backend, *tensors):
        from linrec.kernels import norm

        return norm.gated_rms_norm(x, weight, gate, eps, activation, gate_first, groups)
    if gate is None:
        return rms_norm(x, weight, eps, groups)
    act = silu(gate) if activation == "silu" else gate.sigmoid()
    return rms_norm(x * act, weight, eps, groups) if gate_first else rms_norm(x, weight, eps, groups) * act


def rms_norm(x: Tensor, weight: Tensor, eps: float, groups: int = 1) -> Tensor:
    """w x / sqrt(mean of x^2 + eps), the mean over each of ``groups`` equal parts of a row.

    x ``[..., width]``, weight ``[width]``.
    """
    if groups == 1:
        width = weight.numel()
        if x.numel() == width and _only_values(x, weight):
            length = float(
                torch.linalg.vector_norm(x)
            )  # a number in Python instead of tensors of one element
            return (x * weight).mul_((length * length / width + eps) ** -0.5)
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    parts = x.unflatten(-1, (groups, -1))
    return F.rms_norm(parts, parts.shape[-1:], None, eps).flatten(-2) * weight.to(x.dtype)


def _only_values(x: Tensor, weight: Tensor) -> bool:
    wide = x.dtype is weight.dtype and x.dtype in (torch.float32, torch.float64)
    return wide and weight.numel() > 0 and only_values(x, weight)
