"""The trapezoidal recurrence of Mamba-3 with R keys, values and queries a token, as one call of the matrix engine.

.. code-block:: text

    U_t = sum_r k_tr v_tr^T
    S_t = e^{g_t} (S_{t-1} + (1 - lam_t) dt_t U_{t-1}) + lam_t dt_t U_t;    y_tr = S_t^T q_tr

A token is written once, with its own weight and the one that the next token gives it; the weight from the next
token, and the pairs that a query has not met yet among the R of its token, are put right on the diagonal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.matrix import MatrixTerms
from linrec.engines.program import Run, micro_steps


def trapezoid(
    run: Run,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    shares: tuple[Tensor, Tensor],
    start: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """y ``[B, T, HV, R, V]`` and the last S.

    q, k ``[B, T, HV, R, K]``, v ``[B, T, HV, R, V]``, g ``[B, T, HV]``; ``shares`` are lam dt and (1 - lam) dt, each
    ``[B, T, HV]``; ``start`` is S and U of the token before, each ``[B, HV, K, V]``.
    """
    now, late = shares
    memory, before = start
    ranks = q.shape[3]
    ahead = F.pad(late[:, 1:], (0, 0, 0, 1))  # the next token's part, none at the end of a call
    decay = F.pad(g[..., None], (0, ranks - 1))  # a token decays once, at its first pair
    q_steps, k_steps, v_steps = (micro_steps(x) for x in (q, k, (now + ahead)[..., None, None] * v))
    terms = MatrixTerms(q_steps, k_steps, v_steps, micro_steps(decay))
    y, memory = run.matrix(terms, memory + late[:, 0, :, None, None] * before)
    met = torch.ones(ranks, ranks, dtype=torch.bool, device=q.device).tril()
    missing = torch.where(met, -ahead[..., None, None], now[..., None, None])
    return y.unflatten(1, (-1, ranks)).transpose(2, 3) + (missing * (q @ k.mT)) @ v, memory
