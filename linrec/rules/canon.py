"""Canon layers: a short convolution beside the residual stream."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.convolution import CONVOLUTION, ConvolutionTerms
from linrec.rule import rule

Channels = Annotated[Tensor, Arg("B T D")]
Kernel = Annotated[Tensor, Arg("D W")]
PerChannel = Annotated[Tensor, Arg("D")]


def as_residual(weight: Tensor) -> Tensor:
    """The kernel of x + conv(x): one more at the current token."""
    return torch.cat([weight[:, :-1], weight[:, -1:] + 1], dim=1)


@rule(
    engine=CONVOLUTION,
    cite="Allen-Zhu 2025, arXiv:2512.17351",
    equation="y_t = x_t + b + Σ_{i<W} w_i ⊙ x_{t-W+1+i}",
    state="W-1",
    scale="1",
)
def canon(x: Channels, weight: Kernel, bias: PerChannel | None = None) -> ConvolutionTerms:
    """Canon: the residual of a short causal convolution (Allen-Zhu 2025, arXiv:2512.17351).

    .. code-block:: text

        y_t = x_t + bias + sum_{i < W} weight_i * x_{t - W + 1 + i}

    x ``[B, T, D]``, weight ``[D, W]`` (the last column meets the current token; the paper's W is 4), bias ``[D]`` or
    None. State ``[B, W - 1, D]``: the last inputs. ``scale`` multiplies y; default 1.
    """
    return ConvolutionTerms(x, as_residual(weight), bias)
