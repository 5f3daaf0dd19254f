"""Mamba: selective state spaces."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.diagonal import DIAGONAL, DiagonalTerms, Tokens
from linrec.rule import Channels, ChannelSkip, rule

TimeStep = Annotated[Tensor, Arg("B T D", draw="positive")]
Rate = Annotated[Tensor, Arg("D N", draw="negative")]
Projection = Annotated[Tensor, Arg("B T N")]


@rule(
    engine=DIAGONAL,
    cite="Gu, Dao 2023, arXiv:2312.00752",
    equation="h_t = e^{dt_t A} ⊙ h_{t-1} + dt_t x_t B_tᵀ,  y_t = h_t C_t + D x_t",
    state="N",
    scale="1",
)
def mamba(
    x: Channels, dt: TimeStep, A: Rate, B: Projection, C: Projection, D: ChannelSkip | None = None
) -> DiagonalTerms:
    """Mamba's selective scan (Gu, Dao 2023, arXiv:2312.00752).

    .. code-block:: text

        h_t[d, n] = e^{dt_t[d] A[d, n]} h_{t-1}[d, n] + dt_t[d] B_t[n] x_t[d]
        y_t[d] = sum_n scale C_t[n] h_t[d, n] + D[d] x_t[d]

    x ``[B, T, D]``, dt ``[B, T, D]`` > 0 (after softplus), A ``[D, N]`` < 0, B and C ``[B, T, N]``, D ``[D]`` or
    None. The input is discretised to first order (dt B), as in the authors' code. State ``[B, D, N]``; default
    scale 1. The chunkwise form holds ``[B, chunk_size, D, N]`` for one chunk at a time, in the backward pass too;
    the parallel form holds it for the whole sequence.
    """
    rates = A.mT.contiguous()

    def expand(t: Tokens) -> tuple[Tensor, Tensor]:
        return t["dt"][:, :, None] * rates, (t["dt"] * t["x"])[:, :, None] * t["B"][..., None]

    def read(t: Tokens, h: Tensor) -> Tensor:
        y = (t["C"][:, :, None] @ h)[:, :, 0]
        return y if D is None else torch.addcmul(y, D, t["x"])

    return DiagonalTerms(
        {"x": x, "dt": dt, "B": B, "C": C},
        expand,
        tuple(A.shape),
        read,
        recompute=True,
        transposed=True,
    )
