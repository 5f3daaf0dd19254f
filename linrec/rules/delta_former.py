"""DeltaFormer."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.attention.delta_former import DELTA_FORMER, DeltaFormerTerms
from linrec.errors import UnknownNameError
from linrec.rule import Options, Unpack, rule
from linrec.rules.softmax_attention import GroupedQuery, Key, Value

KeyStrength = Annotated[Tensor, Arg("B T H", draw="strength")]


@rule(engine=DELTA_FORMER, state="T*(K+V)")
def delta_former(
    q: GroupedQuery,
    k: Key,
    v: Value,
    beta: KeyStrength | None = None,
    w: Key | None = None,
    kernel: str = "exp",
    normalize: bool = True,
    **options: Unpack[Options],
) -> DeltaFormerTerms:
    """Attention with the delta rule in the kernel's space (Zhong et al. 2025, arXiv:2505.19488).

    .. code-block:: text

        u_t = v_t - β_t Σ_{j<t} κ(w_t, k_j) u_j,  o_t = Σ_{j≤t} κ(q_t, k_j) u_j

    κ is softmax over the keys in reach (the default; before the first token there is none, so u_1 = v_1), ``exp`` alone
    with ``normalize=False`` (the scores then must stay small), or the inner product with ``kernel="dot"``, which is
    DeltaNet and has no normalised variant (``normalize`` is then ignored). q ``[B, T, HQ, K]``, k ``[B, T, H, K]``, v
    ``[B, T, H, V]``, beta ``[B, T, H]`` (default 1), w ``[B, T, H, K]`` (default k). ``scale`` multiplies q and w;
    default K^-1/2. u is one triangular solve per key head; it replaces v in the ``KVCache(k, u, length)``. Raises
    UnknownNameError for another kernel.
    """
    if kernel not in ("exp", "dot"):
        raise UnknownNameError(f"delta_former: unknown kernel {kernel!r}; one of exp, dot")
    if beta is None:
        beta = torch.ones_like(k[..., 0])
    return DeltaFormerTerms(q, k, v, k if w is None else w, beta, kernel, normalize)
