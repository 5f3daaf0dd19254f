"""The linear recurrent unit."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.diagonal import DIAGONAL, DiagonalTerms
from linrec.rule import Channels, ChannelSkip, Options, Unpack, rule
from linrec.rules.rg_lru import bounded_root
from linrec.rules.s5 import dense_terms

ConstantDecay = Annotated[Tensor, Arg("N", draw="log_decay")]
Angle = Annotated[Tensor, Arg("N")]
Into = Annotated[Tensor, Arg("N D")]
Out = Annotated[Tensor, Arg("D N")]


@rule(engine=DIAGONAL, state="2*N/D", scale="1")
def lru(
    x: Channels,
    g: ConstantDecay,
    angle: Angle,
    B_re: Into,
    B_im: Into,
    C_re: Out,
    C_im: Out,
    D: ChannelSkip | None = None,
    **options: Unpack[Options],
) -> DiagonalTerms:
    """Linear recurrent unit (Orvieto et al. 2023, arXiv:2303.06349).

    .. code-block:: text

        h_t = λ ⊙ h_{t-1} + √(1 - |λ|²) ⊙ B x_t,  y_t = Re C h_t + D x_t,  λ = e^{g + iθ}

    x ``[B, T, D]``, g ``[N]`` log-decay <= 0 (the paper's -e^nu), angle θ ``[N]`` (the paper's e^theta), B ``[N, D]``
    and C ``[D, N]`` as real and imaginary part, D ``[D]`` or None. State ``[B, N, 2]``, real and imaginary part;
    ``scale`` (default 1) multiplies C h_t. The parallel form is one FFT convolution a state.
    """
    gain = bounded_root(-torch.expm1(2 * g))[:, None]
    return dense_terms(
        x, torch.complex(g, angle), gain * torch.complex(B_re, B_im), torch.complex(C_re, C_im), D
    )
