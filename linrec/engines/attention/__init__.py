"""Softmax attention and its relatives over a growing cache of tokens.

.. code-block:: text

    s_ij = scale q_i . k_j + c_i - c_j      (j <= i, and i - j < window)
    o_i  = sum_j softmax_j(s_ij) v_j

``cache`` keeps the tokens, ``fused`` calls torch's own kernels, ``engine`` is plain, biased and windowed
attention with a hook for other weights; ``delta_former`` feeds the output back into the values by a triangular
solve, ``path`` transports queries and keys through products of Householder-like matrices.
"""

from linrec.engines.attention.cache import GatedCache, KVCache
from linrec.engines.attention.engine import ATTENTION, AttentionTerms
from linrec.engines.attention.fused import merge

__all__ = ["ATTENTION", "AttentionTerms", "GatedCache", "KVCache", "merge"]
