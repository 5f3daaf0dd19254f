"""Longhorn."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.diagonal import DIAGONAL, DiagonalTerms
from linrec.engines.diagonal.selective import selective_terms
from linrec.rule import Channels, ChannelSkip, Options, Unpack, rule

Strength = Annotated[Tensor, Arg("B T D", draw="positive")]
Projection = Annotated[Tensor, Arg("B T N")]


@rule(engine=DIAGONAL, as_is=("q", "v"), state="N", scale="1")
def longhorn(
    q: Projection,
    k: Projection,
    v: Channels,
    beta: Strength,
    D: ChannelSkip | None = None,
    **options: Unpack[Options],
) -> DiagonalTerms:
    """Longhorn's layer form (Liu et al. 2024, arXiv:2407.14207).

    .. code-block:: text

        h_t = (1 - ε_t k_t²ᵀ) ⊙ h_{t-1} + ε_t v_t k_tᵀ,  ε = β / (1 + β|k|²),  o_t = h_t q_t + D v_t

    h_t is ``[D, N]``: ε_t v_t is a column of D numbers, k_t a row of N. The exact minimiser of |S - S_{t-1}|^2 + beta
    |S^T k - v|^2 with k k^T replaced by its diagonal; the decay is in (0, 1) for any k. (The exact form with one beta a
    head is the delta rule with eps for beta.) q and k ``[B, T, N]``, v ``[B, T, D]``, beta ``[B, T, D]`` > 0, D ``[D]``
    or None. State ``[B, D, N]``; ``scale`` (default 1) multiplies q.
    """
    eps = beta / (1 + beta * k.square().sum(-1, keepdim=True))
    return selective_terms(eps, v, rate=-k.square(), into=k, out=q, skip=D, exponential=False)
