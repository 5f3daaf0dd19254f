"""Token shift."""

import torch

from linrec.engines.convolution import CONVOLUTION, ConvolutionTerms
from linrec.rule import Options, Unpack, rule
from linrec.rules.canon import Channels, PerChannel


@rule(engine=CONVOLUTION, state="1", scale="1")
def token_shift(x: Channels, mu: PerChannel, **options: Unpack[Options]) -> ConvolutionTerms:
    """Token shift, RWKV's mix of a token with the one before (Peng et al. 2023, arXiv:2305.13048).

    .. code-block:: text

        y_t = x_t + μ ⊙ (x_{t-1} - x_t)

    A convolution of width two. x ``[B, T, D]``, mu ``[D]``. State ``[B, 1, D]``: the last input; ``scale`` multiplies
    y; default 1.
    """
    return ConvolutionTerms(x, torch.stack([mu, 1 - mu], dim=1))
