"""The chunk algorithm: matrix products inside a chunk, a state between chunks.

With G the inclusive cumulative log-decay of the chunk and S the entry state, every exponent formed is a
sum of log-decays, hence <= 0: nothing can overflow, and underflow to zero is the right answer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.matrix.plan import CHUNK
from linrec.engines.matrix.scores import decayed_scores
from linrec.engines.matrix.terms import Heads, MatrixTerms, from_heads, to_heads
from linrec.engines.numerics.decays import cumulative_decay
from linrec.engines.numerics.triangular import solve_unit_lower
from linrec.rule import Call


def parallel(terms: MatrixTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """The whole sequence as one chunk. Returns (o ``[B, T, HV, V]``, final state ``[B, HV, K, V]``)."""
    return chunkwise_plain(terms, state, call._replace(chunk_size=max(terms.v.shape[1], 1)))


def chunkwise_plain(terms: MatrixTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Chunk by chunk. Returns (o ``[B, T, HV, V]``, final state ``[B, HV, K, V]``)."""
    x, chunk = to_heads(terms.explicit(), call.scale), call.chunk_size or CHUNK
    h, length = state.unflatten(1, (terms.k.shape[2], -1)), terms.v.shape[1]
    outputs = []
    for start in range(0, length, chunk):
        o, h = one_chunk(x.rows(start, min(start + chunk, length)), h, terms.predict, terms.readout)
        outputs.append(o)
    o = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-2) if outputs else torch.zeros_like(x.v)
    return terms.skipped(from_heads(o)), h.flatten(1, 2)


def one_chunk(x: Heads, state: Tensor, predict: str, readout: str) -> tuple[Tensor, Tensor]:
    """Output and exit state of one chunk (of any length: the parallel form is a chunk of length T)."""
    total = cumulative_decay(x.g)
    before = F.pad(total[..., :-1, :], (0, 0, 1, 0))  # exclusive sum by shifting: total - g would lose digits
    seen_by_q = total if readout == "post" else before
    reads_now = readout == "post"
    scores_qk = decayed_scores(x.q, x.k, seen_by_q, total, diagonal=reads_now)
    o = (x.q * _exp(seen_by_q, x.q)) @ state
    if x.bonus is not None:
        o = o + (x.q * x.bonus * x.k).sum(-1, keepdim=True) * x.v
    to_end = _exp(total[..., -1:, :] - total, x.k)
    new_state = _exp(total[..., -1:, :], state).mT * state
    if x.a is None:
        written = x.v
    else:
        seen_by_a = total if predict == "decayed" else before
        from_entry = (x.a * _exp(seen_by_a, x.a)) @ state
        if x.b is None:  # delta path: the prediction is written with k itself, so it merges with v
            system = decayed_scores(x.a, x.k, seen_by_a, total, diagonal=False)
            written = solve_unit_lower(system, x.v + from_entry)
        else:
            within = decayed_scores(x.a, x.k, seen_by_a, total, diagonal=False) @ x.v
            system = decayed_scores(x.a, x.b, seen_by_a, total, diagonal=False)
            predicted = solve_unit_lower(system, within + from_entry)
            o = o + decayed_scores(x.q, x.b, seen_by_q, total, diagonal=reads_now) @ predicted
            new_state = new_state + (x.b * to_end).mT @ predicted
            written = x.v
    return o + scores_qk @ written, new_state + (x.k * to_end).mT @ written


def _exp(exponent: Tensor, like: Tensor) -> Tensor:
    return exponent.to(like.dtype).exp()
