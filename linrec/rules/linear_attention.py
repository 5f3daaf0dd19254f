"""Linear attention, with feature maps and the normalising denominator."""

import torch
import torch.nn.functional as F

from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.errors import UnknownNameError
from linrec.rule import Key, Query, Value, rule

FEATURE_MAPS = {
    "identity": lambda x: x,
    "elu+1": lambda x: F.elu(x) + 1,
    "relu": F.relu,
    "square": torch.square,
    "exp": lambda x: torch.cat([x.exp(), (-x).exp()], dim=-1),
}


@rule(
    engine=MATRIX,
    cite="Katharopoulos, Vyas, Pappas, Fleuret 2020, arXiv:2006.16236",
    equation="S_t = S_{t-1} + φ(k_t) v_tᵀ,  z_t = z_{t-1} + φ(k_t),  o_t = S_tᵀφ(q_t) / z_tᵀφ(q_t)",
    state="K*(V+1)",
    scale="1",
)
def linear_attention(
    q: Query, k: Key, v: Value, feature_map: str = "elu+1", normalize: bool = True, eps: float = 0.0
) -> MatrixTerms:
    """Linear attention (Katharopoulos, Vyas, Pappas, Fleuret 2020, arXiv:2006.16236).

    .. code-block:: text

        S_t = S_{t-1} + phi(k_t) v_t^T;   z_t = z_{t-1} + phi(k_t)
        o_t = S_t^T phi(q_t) / (z_t . phi(q_t) + eps)      (normalize=False: no denominator)

    q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``. ``feature_map``: ``identity``, ``elu+1``, ``relu``, ``square`` or
    ``exp`` (pairs e^x, e^-x, width 2K). A map that is not positive everywhere can make the denominator vanish.
    The denominator is one more value column, so the state is ``[B, HV, phi(K), V + 1]`` (``V`` without it).
    ``scale`` multiplies phi(q); default 1. Raises UnknownNameError for another feature map.
    """
    if feature_map not in FEATURE_MAPS:
        raise UnknownNameError(
            f"linear_attention: unknown feature_map {feature_map!r}; one of {', '.join(FEATURE_MAPS)}"
        )
    phi = FEATURE_MAPS[feature_map]
    if not normalize:
        return MatrixTerms(phi(q), phi(k), v)
    return MatrixTerms(
        phi(q), phi(k), F.pad(v, (0, 1), value=1.0), finish=lambda o: o[..., :-1] / (o[..., -1:] + eps)
    )
