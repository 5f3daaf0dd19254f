"""Matrix memory with a decay on either side: S_t = Diag(e^{g_t}) S_{t-1} Diag(e^{h_t}) + k_t v_t^T.

The key-side decay lives in the scores, as in the matrix engine; the value-side decay differs for every value
channel, so it multiplies the scores channel by channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.engines.matrix.scores import SUB_CHUNK, decayed_scores
from linrec.engines.numerics.decays import cumulative_decay, grown, lower
from linrec.engines.programs.program import Run, heads_first


def two_sided(
    run: Run, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, h: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """q, k ``[B, T, HV, K]``, v and h ``[B, T, HV, V]``, g ``[B, T, HV, K]`` or None; state ``[B, HV, K, V]``.

    Returns o_t = S_t^T q_t ``[B, T, HV, V]`` and the final state.
    """
    tensors = {"q": q, "k": k, "v": v, "h": h} | ({} if g is None else {"g": g})
    return run.chunks(_one_chunk, tensors, state)


def _one_chunk(x: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v, h = (heads_first(x[n]) for n in ("q", "k", "v", "h"))
    by_key = cumulative_decay(heads_first(x["g"]) if "g" in x else q.new_zeros(q.shape[2], 1))
    by_value = cumulative_decay(h)
    scores = decayed_scores(q, k, by_key, by_key, diagonal=True)
    o = value_decayed(scores, v, by_value) + grown(by_value, v) * ((q * grown(by_key, q)) @ state)
    key_end, value_end = by_key[..., -1:, :], by_value[..., -1:, :]
    written = (k * grown(key_end - by_key, k)).mT @ (v * grown(value_end - by_value, v))
    return heads_first(o), grown(key_end, state).mT * state * grown(value_end, state) + written


def value_decayed(scores: Tensor, v: Tensor, total: Tensor) -> Tensor:
    """sum_{j <= i} scores_ij e^{total_id - total_jd} v_jd for lower triangular scores ``[..., T, T]``, v
    ``[..., T, V]``.

    ``total [..., T, V]`` is the inclusive cumulative log-decay. Blocks of rows: to the left of the diagonal
    block both factors are taken relative to its start and are at most one; on it the exponents are formed.
    """
    length, rows = v.shape[-2], []
    for start in range(0, length, SUB_CHUNK):
        stop = min(start + SUB_CHUNK, length)
        here = total[..., start:stop, :]
        keep = lower(stop - start, v.device)
        exponent = (here[..., :, None, :] - here[..., None, :, :]).masked_fill(~keep[..., None], -torch.inf)
        near = scores[..., start:stop, start:stop, None] * grown(exponent, v) * v[..., None, start:stop, :]
        row = near.sum(-2)
        if start:
            reference = total[..., start - 1 : start, :]
            past = grown(reference - total[..., :start, :], v) * v[..., :start, :]
            row = row + grown(here - reference, v) * (scores[..., start:stop, :start] @ past)
        rows.append(row)
    return torch.cat(rows, dim=-2)
