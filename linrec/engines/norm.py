"""RMSNorm with a gate, through one Triton kernel on a GPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from linrec.engines.backends import prefers_triton


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
        return _norm(x, weight, eps, groups)
    act = F.silu(gate) if activation == "silu" else gate.sigmoid()
    return _norm(x * act, weight, eps, groups) if gate_first else _norm(x, weight, eps, groups) * act


def _norm(x: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    if groups == 1:
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    parts = x.unflatten(-1, (groups, -1))
    return F.rms_norm(parts, parts.shape[-1:], None, eps).flatten(-2) * weight.to(x.dtype)
