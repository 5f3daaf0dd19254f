"""Retention."""

import torch
from torch import Tensor

from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.rule import HeadDecay, Key, Options, Query, Unpack, Value, rule

__all__ = ["retnet", "retnet_decay"]


def retnet_decay(heads: int, device: torch.device | str | None = None) -> Tensor:
    """log(1 - 2^(-5 - h)) for h = 0 .. heads - 1, float64 ``[heads]``: RetNet's log-decays."""
    h = torch.arange(heads, dtype=torch.float64, device=device)
    return torch.log1p(-torch.exp2(-5.0 - h))


@rule(engine=MATRIX, as_is=("q", "k", "v"))
def retnet(q: Query, k: Key, v: Value, g: HeadDecay, **options: Unpack[Options]) -> MatrixTerms:
    """Retention (Sun et al. 2023, arXiv:2307.08621).

    .. code-block:: text

        S_t = e^{g} S_{t-1} + k_t v_tᵀ,  o_t = S_tᵀ q_t,  g = log γ constant per head

    q, k ``[B, T, H, K]`` (already rotated), v ``[B, T, HV, V]``, g = log γ, log-decay <= 0 per head ``[HV]`` (the
    paper's constants: :func:`retnet_decay`) or ``[B, T, HV]``. State ``[B, HV, K, V]``; ``scale`` (default K^-1/2)
    multiplies q.
    """
    return MatrixTerms(q, k, v, g.expand(v.shape[:3]))
