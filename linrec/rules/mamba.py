"""Mamba: selective state spaces."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.diagonal import DIAGONAL, DiagonalTerms
from linrec.engines.diagonal.selective import selective_terms
from linrec.rule import Channels, ChannelSkip, Options, Unpack, rule

TimeStep = Annotated[Tensor, Arg("B T D", draw="positive")]
Rate = Annotated[Tensor, Arg("D N", draw="negative")]
Projection = Annotated[Tensor, Arg("B T N")]


@rule(engine=DIAGONAL, as_is=("x", "dt", "B", "C"), state="N", scale="1")
def mamba(
    x: Channels,
    dt: TimeStep,
    A: Rate,
    B: Projection,
    C: Projection,
    D: ChannelSkip | None = None,
    **options: Unpack[Options],
) -> DiagonalTerms:
    """Mamba's selective scan (Gu, Dao 2023, arXiv:2312.00752).

    .. code-block:: text

        h_t = e^{dt_t A} ⊙ h_{t-1} + dt_t x_t B_tᵀ,  y_t = h_t C_t + D x_t

    x ``[B, T, D]``, dt ``[B, T, D]`` > 0 (after softplus), A ``[D, N]`` < 0, B and C ``[B, T, N]``, D ``[D]`` or None.
    The input is discretised to first order (dt B), as in the authors' code. State ``[B, D, N]``; ``scale`` (default 1)
    multiplies C. The chunkwise form holds ``[B, chunk_size, D, N]`` for one chunk at a time, in the backward pass too;
    the parallel form holds it for the whole sequence.
    """
    return selective_terms(dt, x, rate=A, into=B, out=C, skip=D)
