"""Gated linear attention."""

from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.rule import AnyDecay, Key, Query, Value, rule


@rule(
    engine=MATRIX,
    as_is=("q", "k", "v"),
    cite="Yang, Wang, Shen, Panda, Kim 2023, arXiv:2312.06635",
    equation="S_t = Diag(e^{g_t}) S_{t-1} + k_t v_tᵀ,  o_t = S_tᵀ q_t",
)
def gla(q: Query, k: Key, v: Value, g: AnyDecay) -> MatrixTerms:
    """Gated linear attention (Yang et al. 2023, arXiv:2312.06635).

    .. code-block:: text

        S_t = Diag(e^{g_t}) S_{t-1} + k_t v_t^T;   o_t = S_t^T (scale q_t)

    q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g log-decay <= 0 by channel ``[B, T, HV, K]`` or by head
    ``[B, T, HV]`` (simple GLA). State ``[B, HV, K, V]``; default scale K^-1/2.
    """
    return MatrixTerms(q, k, v, g)
