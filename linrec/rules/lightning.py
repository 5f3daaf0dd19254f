"""Lightning attention."""

import torch
from torch import Tensor

from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.errors import RangeError
from linrec.rule import HeadDecay, Key, Options, Query, Unpack, Value, rule

__all__ = ["lightning", "lightning_decay"]


def lightning_decay(
    heads: int, layer: int = 0, layers: int = 1, device: torch.device | str | None = None
) -> Tensor:
    """-2^(-8 (h + 1) / heads) (1 - layer / (layers - 1)), float64 ``[heads]``: MiniMax-01's log-decays.

    Raises RangeError unless 0 <= layer < layers.
    """
    if not 0 <= layer < layers:
        raise RangeError(f"lightning_decay: expected 0 <= layer < layers, got layer={layer}, layers={layers}")
    h = torch.arange(1, heads + 1, dtype=torch.float64, device=device)
    depth = 1 - layer / max(layers - 1, 1)
    return -torch.exp2(-8 * h / heads) * depth


@rule(engine=MATRIX, as_is=("q", "k", "v"), scale="1")
def lightning(q: Query, k: Key, v: Value, g: HeadDecay, **options: Unpack[Options]) -> MatrixTerms:
    """Lightning attention (Qin et al. 2024, arXiv:2401.04658; MiniMax-01 2025, arXiv:2501.08313).

    .. code-block:: text

        S_t = e^{-s} S_{t-1} + k_t v_tᵀ,  o_t = S_tᵀ q_t,  g = -s constant per head

    q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g = -slope <= 0 per head ``[HV]`` or ``[B, T, HV]``. Two families of
    slopes are in use, so they are an argument; :func:`lightning_decay` gives MiniMax-01's. State ``[B, HV, K, V]``;
    ``scale`` (default 1) multiplies q.
    """
    return MatrixTerms(q, k, v, g.expand(v.shape[:3]))
