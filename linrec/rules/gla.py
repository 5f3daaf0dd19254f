"""Gated linear attention."""

from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.rule import AnyDecay, Key, Options, Query, Unpack, Value, rule


@rule(engine=MATRIX, as_is=("q", "k", "v"))
def gla(q: Query, k: Key, v: Value, g: AnyDecay, **options: Unpack[Options]) -> MatrixTerms:
    """Gated linear attention (Yang, Wang, Shen, Panda, Kim 2023, arXiv:2312.06635).

    .. code-block:: text

        S_t = Diag(e^{g_t}) S_{t-1} + k_t v_tᵀ,  o_t = S_tᵀ q_t

    q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g log-decay <= 0 by channel ``[B, T, HV, K]`` or by head ``[B, T, HV]``
    (simple GLA). State ``[B, HV, K, V]``; ``scale`` (default K^-1/2) multiplies q.
    """
    return MatrixTerms(q, k, v, g)
