"""Several delta updates at once: all R predictions of a token read the same state.

.. code-block:: text

    S_t = e^{g_t} S_{t-1} + sum_r eta_tr k_tr (v_tr - S_{t-1}^T k_tr)^T;   o_t = S_t^T q_t

It differs from R delta steps one after the other. The triangular system of a chunk has a row a pair, and its mask
is strict in tokens, not in pairs.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from linrec.engines.numerics.decays import between, cumulative_decay, exclusive, grown
from linrec.engines.numerics.triangular import solve_unit_lower
from linrec.engines.programs.program import Run, heads_first

PAIRS = 64


def simultaneous(
    run: Run, q: Tensor, k: Tensor, v: Tensor, g: Tensor, eta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """q ``[B, T, HV, K]``, k ``[B, T, HV, R, K]``, v ``[B, T, HV, R, V]``, g ``[B, T, HV]``, eta ``[B, T, HV, R]``,
    state ``[B, HV, K, V]``."""
    tensors = {"q": q, "k": k, "v": v, "g": g, "eta": eta}
    return run.chunks(_one_chunk, tensors, state, default=max(PAIRS // k.shape[3], 1))


def _one_chunk(x: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    q = heads_first(x["q"])
    k, v, eta = (_pairs_of_head(y) for y in (x["k"], x["v"], x["eta"][..., None]))
    total = cumulative_decay(heads_first(x["g"])[..., None])
    pairs = x["k"].shape[3]
    written, seen = (s.repeat_interleave(pairs, dim=-2) for s in (total, exclusive(total)))
    token = torch.arange(q.shape[-2], device=q.device)
    of_pair = token.repeat_interleave(pairs)
    system = -eta * (k @ k.mT) * between(seen, written, of_pair[:, None] > of_pair, v)
    error = solve_unit_lower(system, eta * (v - grown(seen, v) * (k @ state)))
    scores = (q @ k.mT) * between(total, written, token[:, None] >= of_pair, v)
    end = total[..., -1:, :]
    o = grown(total, v) * (q @ state) + scores @ error
    return heads_first(o), grown(end, v) * state + (k * grown(end - written, v)).mT @ error


def _pairs_of_head(x: Tensor) -> Tensor:
    return rearrange(x, "B T HV R ... -> B HV (T R) ...")
