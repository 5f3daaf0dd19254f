"""S5: one diagonal state space for all channels."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.diagonal import DIAGONAL, DiagonalTerms, Tokens
from linrec.engines.numerics.discretization import discretized
from linrec.rule import Channels, ChannelSkip, Options, Unpack, rule

TimeStep = Annotated[Tensor, Arg("N", draw="positive")]
Rate = Annotated[Tensor, Arg("N", draw="negative")]
Frequency = Annotated[Tensor, Arg("N")]
Into = Annotated[Tensor, Arg("N D")]
Out = Annotated[Tensor, Arg("D N")]


@rule(engine=DIAGONAL, state="2*N/D", scale="1")
def s5(
    x: Channels,
    dt: TimeStep,
    A_re: Rate,
    A_im: Frequency,
    B_re: Into,
    B_im: Into,
    C_re: Out,
    C_im: Out,
    D: ChannelSkip | None = None,
    discretization: str = "zoh",
    **options: Unpack[Options],
) -> DiagonalTerms:
    """S5: N complex states shared by D inputs and outputs (Smith, Warrington, Linderman 2022, arXiv:2208.04933).

    .. code-block:: text

        h_t = Ā ⊙ h_{t-1} + B̄ x_t,  y_t = 2 Re C h_t + D x_t,  B̄ ∈ ℂ^{N×D}, C ∈ ℂ^{D×N}

    x ``[B, T, D]``, dt ``[N]`` > 0, A ``[N]`` with A_re < 0, one of each conjugate pair, B ``[N, D]``, C ``[D, N]``,
    all as real and imaginary part; D ``[D]`` or None. Discretisations as in :func:`s4d`. State ``[B, N, 2]``, real and
    imaginary part; ``scale`` (default 1) multiplies C h_t. The parallel form is one FFT convolution a state.
    """
    log_decay, gain = discretized(torch.complex(A_re, A_im), dt, discretization, "s5")
    return dense_terms(
        x, log_decay, gain[:, None] * torch.complex(B_re, B_im), 2 * torch.complex(C_re, C_im), D
    )


def dense_terms(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> DiagonalTerms:
    """h_t = e^{log_decay} h_{t-1} + B x_t, y_t = Re(C h_t) + D x_t, with complex log_decay ``[N]``, B ``[N, D]``,
    C ``[D, N]``, x ``[B, T, D]``, D ``[D]``."""
    skip = None if D is None else lambda y: y + D * x

    def expand(t: Tokens) -> tuple[Tensor, Tensor]:
        return log_decay[None, None], torch.complex(t["x"] @ B.real.mT, t["x"] @ B.imag.mT)

    def read(t: Tokens, h: Tensor) -> Tensor:
        return h.real @ C.real.mT - h.imag @ C.imag.mT

    return DiagonalTerms(
        {"x": x}, expand, tuple(log_decay.shape), read, complex=True, parallel="convolution", finish=skip
    )
