"""Linear attention, with feature maps and the normalising denominator."""

import torch.nn.functional as F
from torch import Tensor

from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.rule import Key, Options, Query, Unpack, Value, rule
from linrec.rules.feature_maps import features


@rule(engine=MATRIX, state="K*(V+1)", scale="1")
def linear_attention(
    q: Query,
    k: Key,
    v: Value,
    feature_map: str = "elu+1",
    normalize: bool = True,
    eps: float = 0.0,
    projection: Tensor | None = None,
    **options: Unpack[Options],
) -> MatrixTerms:
    """Linear attention (Katharopoulos, Vyas, Pappas, Fleuret 2020, arXiv:2006.16236).

    .. code-block:: text

        S_t = S_{t-1} + φ(k_t) v_tᵀ,  z_t = z_{t-1} + φ(k_t),  o_t = S_tᵀφ(q_t) / z_tᵀφ(q_t)

    q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``. ``feature_map`` φ (:mod:`linrec.rules.feature_maps`): ``identity``,
    ``elu+1``, ``relu``, ``square``, ``exp`` (pairs e^x, e^-x, width 2K), ``taylor2`` (Based, width 1 + K + K (K + 1) /
    2), ``rebased`` (its square term alone), and with a ``projection`` ``[M, K]`` of standard normal rows ``performer``
    (width M) and ``rfa`` (width 2M). A map that is not positive everywhere can make the denominator vanish; ``eps`` is
    added to it, ``normalize=False`` leaves it out. It is one more value column, so the state is
    ``[B, HV, phi(K), V + 1]`` (``V`` without it). ``scale`` multiplies phi(q); default 1. Raises UnknownNameError for
    another feature map, ShapeError for a projection that does not fit.
    """
    phi_q, phi_k = features(q, k, feature_map, projection, normalize, "linear_attention")
    if not normalize:
        return MatrixTerms(phi_q, phi_k, v)
    return MatrixTerms(
        phi_q, phi_k, F.pad(v, (0, 1), value=1.0), finish=lambda o: o[..., :-1] / (o[..., -1:] + eps)
    )
