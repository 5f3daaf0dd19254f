"""The chunk algorithm, in differentiable calls: products inside a chunk, a state between chunks.

In the letters of DeltaNet (arXiv:2406.06484), Gated DeltaNet (arXiv:2412.06464) and RWKV-7 (arXiv:2503.14456):

================  =============  =================================================================================
paper             here           what it is
================  =============  =================================================================================
S, h              ``h``          the state before the chunk, ``[K, V]``; ``h_next`` that after it
g, log γ          ``g``          log-decays summed up to each row of the chunk, the row included; ``g_q`` and ``g_a``
                                 as q and a see them: up to the row, or to the one before
a, b              ``a``, ``b``   the key that reads the prediction, and that which writes it; the delta rule: -β k, k
A_qk, A_ak, ...   ``A_qk`` ...   what row i of q or a reads of row j of k or b, the decay between them included
A, T              solve(A_ab)    (I - A_ab)^-1, by forward substitution
u, w              --             A v and A (a e^g); with keys b: A A_ak v and A (a e^g)
v_new, u - w h    ``v_new``      what the chunk writes with k: A (v + (a e^g) h) = u + w h, solved for in one, where
                                 the papers subtract because their w has the other sign; without a it is v
z, v_2            ``z``          with keys b: what it writes with them, A (A_ak v + (a e^g) h) = u + w h
================  =============  =================================================================================

.. code-block:: text

    o = (q e^{g_q}) h + A_qk v_new + A_qb z
    h_next = e^{g_C} h + (k e^{g_C - g})^T v_new + (b e^{g_C - g})^T z

Every exponent that is formed is a sum of log-decays, hence <= 0: nothing can overflow, and underflow to zero is right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.engines.matrix.plan import CHUNK
from linrec.engines.matrix.scores import chunk_scores
from linrec.engines.matrix.terms import Heads, MatrixTerms, from_heads, to_heads
from linrec.engines.numerics.decays import cumulative_decay, exclusive, grown
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


def one_chunk(x: Heads, h: Tensor, predict: str, readout: str) -> tuple[Tensor, Tensor]:
    """o ``[B, H, R, C, V]`` and ``h_next`` of one chunk; h ``[B, H, R, K, V]``."""
    g = cumulative_decay(x.g)
    g_q, g_a = (g if sees_now else exclusive(g) for sees_now in (readout == "post", predict == "decayed"))
    A = chunk_scores(x, g, g_q, g_a, diagonal=readout == "post")
    v_new, z = x.v, None
    if x.a is not None and A.ak is not None and A.ab is not None:
        a_h = (x.a * grown(g_a, x.a)) @ h
        z = solve_unit_lower(A.ab, (x.v if x.b is None else A.ak @ x.v) + a_h)
        v_new = z if x.b is None else x.v
    o = (x.q * grown(g_q, x.q)) @ h
    if x.bonus is not None:
        o = o + (x.q * x.bonus * x.k).sum(-1, keepdim=True) * x.v
    to_end = grown(g[..., -1:, :] - g, x.k)
    h_next = grown(g[..., -1:, :], h).mT * h
    if x.b is not None and A.qb is not None and z is not None:
        o = o + A.qb @ z
        h_next = h_next + (x.b * to_end).mT @ z
    return o + A.qk @ v_new, h_next + (x.k * to_end).mT @ v_new
