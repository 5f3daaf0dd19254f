"""Feature maps phi of linear attention: phi(q) . phi(k) stands in for a kernel of q and k."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.errors import ShapeError, UnknownNameError

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "elu+1": lambda x: F.elu(x) + 1,
    "relu": F.relu,
    "square": torch.square,
    "exp": lambda x: torch.cat([x.exp(), (-x).exp()], dim=-1),
    "taylor2": lambda x: taylor2(x),
    "rebased": lambda x: squares(x) * x.shape[-1] ** -0.5,
}
RANDOM: dict[str, Callable[[Tensor, Tensor, bool], Tensor]] = {
    "performer": lambda x, omega, shift: performer(x, omega, shift),
    "rfa": lambda x, omega, shift: rfa(x, omega),
}
FEATURE_MAPS = (*PLAIN, *RANDOM)


def squares(x: Tensor) -> Tensor:
    """``[..., K] -> [..., K (K + 1) / 2]``: x_i x_j with i <= j, so weighted that squares(q) . squares(k) = (q .
    k)^2."""
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    weight = torch.where(i == j, 1.0, 2.0).to(x.dtype).sqrt()
    return x[..., i] * x[..., j] * weight


def taylor2(x: Tensor) -> Tensor:
    """Based (Arora et al. 2024, arXiv:2402.18668): phi(q) . phi(k) = 1 + s + s^2 / 2 with s = q . k / sqrt(K).

    ``[..., K] -> [..., 1 + K + K (K + 1) / 2]``.
    """
    width = x.shape[-1]
    return torch.cat(
        [torch.ones_like(x[..., :1]), x * width**-0.25, squares(x) * (2 * width) ** -0.5], dim=-1
    )


def performer(x: Tensor, omega: Tensor, shift: bool) -> Tensor:
    """Positive random features (Choromanski et al. 2020, arXiv:2009.14794): E phi(q) . phi(k) = e^{q . k}.

    x ``[..., K]``, omega ``[M, K]``. The exponent omega . x - |x|^2 / 2 is at most |omega|^2 / 2 whatever x is.
    ``shift`` subtracts the largest exponent of each token, which a query may do when the output is normalised.
    """
    exponent = x @ omega.T - x.square().sum(-1, keepdim=True) / 2
    if shift:
        exponent = exponent - exponent.amax(-1, keepdim=True)
    return exponent.exp() * omega.shape[0] ** -0.5


def rfa(x: Tensor, omega: Tensor) -> Tensor:
    """Random Fourier features (Peng et al. 2021, arXiv:2103.02143): E phi(q) . phi(k) = e^{-|q - k|^2 / 2}.

    x ``[..., K]``, omega ``[M, K]``.
    """
    angle = x @ omega.T
    return torch.cat([angle.sin(), angle.cos()], dim=-1) * omega.shape[0] ** -0.5


def features(
    q: Tensor, k: Tensor, name: str, projection: Tensor | None, normalize: bool, who: str
) -> tuple[Tensor, Tensor]:
    """phi(q) and phi(k); q, k ``[..., K]``, projection ``[M, K]`` of random features. Raises UnknownNameError, or
    ShapeError for a missing or needless projection."""
    if name in PLAIN:
        if projection is not None:
            raise ShapeError(f"{who}: feature_map {name!r} takes no projection")
        return PLAIN[name](q), PLAIN[name](k)
    if name not in RANDOM:
        raise UnknownNameError(f"{who}: unknown feature_map {name!r}; one of {', '.join(FEATURE_MAPS)}")
    if projection is None or projection.dim() != 2 or projection.shape[1] != k.shape[-1]:
        came = "None" if projection is None else list(projection.shape)
        raise ShapeError(f"{who}: feature_map {name!r} needs projection [M, K={k.shape[-1]}], got {came}")
    omega = projection.to(k)
    return RANDOM[name](q, omega, normalize), RANDOM[name](k, omega, False)
