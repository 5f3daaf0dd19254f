"""The general delta rule: diagonal plus rank one."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.rule import AnyDecay, Key, Options, Query, Unpack, Value, rule

UnitRows = Annotated[Tensor, Arg("B T HV K", draw="unit")]


@rule(engine=MATRIX, as_is=("q", "k", "v", "a", "b"))
def generalized_delta(
    q: Query,
    k: Key,
    v: Value,
    a: UnitRows,
    b: UnitRows,
    g: AnyDecay | None = None,
    **options: Unpack[Options],
) -> MatrixTerms:
    """Diagonal plus low rank, DPLR; without g identity plus low rank, IPLR (Peng et al. 2025, arXiv:2503.14456; Yang et
    al. 2024, arXiv:2406.06484).

    .. code-block:: text

        S_t = (Diag(e^{g_t}) + b_t a_tᵀ) S_{t-1} + k_t v_tᵀ,  o_t = S_tᵀ q_t

    q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, a and b ``[B, T, HV, K]``, g log-decay <= 0, ``[B, T, HV, K]``,
    ``[B, T, HV]`` or None. a reads the state *before* its decay. Nothing bounds the state in general: e^g and b a^T
    must be chosen so that the transition does not grow. b = k, a = -beta e^g k is the gated delta rule. State
    ``[B, HV, K, V]``; ``scale`` (default K^-1/2) multiplies q.
    """
    return MatrixTerms(q, k, v, g, a=a, b=b)
