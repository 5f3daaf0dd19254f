"""S4D: diagonal state spaces, one a channel."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.diagonal import DIAGONAL, DiagonalTerms, Tokens
from linrec.engines.numerics.discretization import discretized
from linrec.rule import Channels, ChannelSkip, Options, Unpack, rule

TimeStep = Annotated[Tensor, Arg("D", draw="positive")]
Rate = Annotated[Tensor, Arg("D N", draw="negative")]
Frequency = Annotated[Tensor, Arg("D N")]


@rule(engine=DIAGONAL, state="2*N", scale="1")
def s4d(
    x: Channels,
    dt: TimeStep,
    A_re: Rate,
    A_im: Frequency,
    C_re: Frequency,
    C_im: Frequency,
    D: ChannelSkip | None = None,
    discretization: str = "zoh",
    **options: Unpack[Options],
) -> DiagonalTerms:
    """S4D: N complex states for each channel (Gu, Gupta, Goel, Ré 2022, arXiv:2206.11893; S4: Gu, Goel, Ré 2021,
    arXiv:2111.00396).

    .. code-block:: text

        h_t = Ā ⊙ h_{t-1} + B̄ x_t,  y_t = 2 Re Σ_n C_n h_t[n] + D x_t,  Ā = e^{dt A},  B̄ = (Ā - 1) / A

        discretization="bilinear":  Ā = (1 + dt A/2) / (1 - dt A/2),  B̄ = dt / (1 - dt A/2)

    x ``[B, T, D]``, dt ``[D]`` > 0, A = A_re + i A_im ``[D, N]`` with A_re < 0, one of each conjugate pair, C = C_re +
    i C_im ``[D, N]`` (B = 1 is absorbed in C), D ``[D]`` or None. State ``[B, D, N, 2]``, real and imaginary part;
    ``scale`` (default 1) multiplies C. The parallel form is one FFT convolution with the kernel 2 Re Σ C B̄ Ā^l,
    the chunkwise form one a chunk. Raises UnknownNameError for another discretization.
    """
    log_decay, gain = discretized(torch.complex(A_re, A_im), dt[:, None], discretization, "s4d")
    C = torch.complex(C_re, C_im)
    skip = None if D is None else lambda y: y + D * x

    def read(t: Tokens, h: Tensor) -> Tensor:
        return 2 * (C * h).sum(-1).real

    return DiagonalTerms(
        {"x": x},
        lambda t: (log_decay[None, None], gain * t["x"][..., None]),
        tuple(A_re.shape),
        read,
        complex=True,
        recompute=True,
        parallel="convolution",
        gain=gain,
        finish=skip,
    )
