"""Canon layers: a short convolution beside the residual stream."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.convolution import CONVOLUTION, ConvolutionTerms
from linrec.rule import Options, Unpack, rule

Channels = Annotated[Tensor, Arg("B T D")]
Kernel = Annotated[Tensor, Arg("D W")]
PerChannel = Annotated[Tensor, Arg("D")]


def as_residual(weight: Tensor) -> Tensor:
    """The kernel of x + conv(x), from weight ``[D, W]``: one more at the current token."""
    return torch.cat([weight[:, :-1], weight[:, -1:] + 1], dim=1)


@rule(engine=CONVOLUTION, state="W-1", scale="1")
def canon(
    x: Channels, weight: Kernel, bias: PerChannel | None = None, **options: Unpack[Options]
) -> ConvolutionTerms:
    """Canon: the residual of a short causal convolution (Allen-Zhu 2025, arXiv:2512.17351).

    .. code-block:: text

        y_t = x_t + b + Σ_{i<W} w_i ⊙ x_{t-W+1+i}

    x ``[B, T, D]``, weight w ``[D, W]`` (the last column meets the current token; the paper's W is 4), bias b ``[D]``
    or None. State ``[B, W - 1, D]``: the last inputs. ``scale`` multiplies y; default 1.
    """
    return ConvolutionTerms(x, as_residual(weight), bias)
