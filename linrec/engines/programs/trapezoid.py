"""The trapezoidal recurrence of Mamba-3 with R keys, values and queries a token, as one call of the matrix engine.

.. code-block:: text

    U_t = sum_r k_tr v_tr^T
    S_t = e^{g_t} (S_{t-1} + (1 - lam_t) dt_t U_{t-1}) + lam_t dt_t U_t;    y_tr = S_t^T q_tr

What of S_t is older than the token, M_t = S_t - lam_t dt_t U_t, is an ordinary recurrence. It writes each token once,
and a token late, when the weight is known that the next one gives it:

.. code-block:: text

    M_t = e^{g_t} (M_{t-1} + (lam_{t-1} dt_{t-1} + (1 - lam_t) dt_t) U_{t-1})
    y_tr = M_t^T q_tr + lam_t dt_t U_t^T q_tr

so nothing is taken off again, and no token is read before its time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from linrec.engines.matrix import MatrixTerms
from linrec.engines.programs.program import Run, micro_steps


def trapezoid(
    run: Run,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    shares: tuple[Tensor, Tensor],
    start: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """y ``[B, T, HV, R, V]`` and the last S.

    q, k ``[B, T, HV, R, K]``, v ``[B, T, HV, R, V]``, g ``[B, T, HV]``; ``shares`` are lam dt and (1 - lam) dt, each
    ``[B, T, HV]``; ``start`` is S ``[B, HV, K, V]``, and k and v of the token before, without a time axis.
    """
    now, late = shares
    memory, *before = start
    ranks = q.shape[3]
    earlier = F.pad(now[:, :-1], (0, 0, 1, 0))  # S at the entry has this share of its last token already
    weight = (g.exp() * (earlier + late))[..., None, None]
    old_k, old_v = (torch.cat([x[:, None], y[:, :-1]], dim=1) for x, y in zip(before, (k, v), strict=True))
    written = weight * old_v
    decay = F.pad(g[..., None], (0, ranks - 1))  # a token decays once, at its first pair
    q_steps, k_steps, v_steps, g_steps = (micro_steps(x) for x in (q, old_k, written, decay))
    y, memory = run.matrix(MatrixTerms(q_steps, k_steps, v_steps, g_steps), memory)
    y = rearrange(y, "B (T R) HV V -> B T HV R V", R=ranks)
    if ranks == 1:
        y = torch.addcmul(y, now[..., None, None] * (q * k).sum(-1, keepdim=True), v)
    else:  # a pair is read before the later ones of the older token are written
        y = y + (q @ k.mT) @ (now[..., None, None] * v) + (q @ old_k.mT).triu(1) @ written
    return y, memory + now[:, -1, :, None, None] * (k[:, -1].mT @ v[:, -1])
