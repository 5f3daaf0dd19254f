"""Mamba-2: state-space duality."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.rule import Options, Unpack, rule

Input = Annotated[Tensor, Arg("B T HV P")]
TimeStep = Annotated[Tensor, Arg("B T HV", draw="positive")]
Rate = Annotated[Tensor, Arg("HV", draw="negative")]
Projection = Annotated[Tensor, Arg("B T G N")]
Skip = Annotated[Tensor, Arg("HV")]


@rule(engine=MATRIX, as_is=("x", "B", "C"), state="N*P", scale="1")
def mamba2(
    x: Input,
    dt: TimeStep,
    A: Rate,
    B: Projection,
    C: Projection,
    D: Skip | None = None,
    **options: Unpack[Options],
) -> MatrixTerms:
    """Mamba-2 (Dao, Gu 2024, arXiv:2405.21060).

    .. code-block:: text

        S_t = e^{dt_t A} S_{t-1} + dt_t B_t x_tᵀ,  y_t = S_tᵀ C_t + D x_t

    x ``[B, T, HV, P]``, dt ``[B, T, HV]`` > 0 (after softplus), A ``[HV]`` < 0, B and C ``[B, T, G, N]`` (HV a multiple
    of G, interleaved), D ``[HV]`` or None. The log-decay is dt A. State ``[B, HV, N, P]``; ``scale`` (default 1)
    multiplies C.
    """
    return MatrixTerms(C, B, x, dt * A, write=dt, skip=D)
