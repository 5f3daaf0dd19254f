"""The MLPs of a block: two matrices around an activation, or three with a gate."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from linrec.engines.numerics.forward_mode import silu
from linrec.layers.projection import project

Activation = Callable[[Tensor], Tensor]


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 of x ``[...]``,  So et al. 2021, arXiv:2109.08668."""
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU of x ``[...]`` by its approximation with tanh,  Hendrycks & Gimpel 2016, arXiv:1606.08415."""
    return F.gelu(x, approximate="tanh")


GATED: dict[str, Activation] = {"swiglu": silu, "geglu": F.gelu, "geglu_tanh": gelu_tanh}
PLAIN: dict[str, Activation] = {"relu2": relu_squared, "silu": silu, "gelu": F.gelu, "gelu_tanh": gelu_tanh}


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)),  Shazeer 2020, arXiv:2002.05202; ``kind`` is one of GATED."""

    def __init__(self, d_model: int, width: int, kind: str = "swiglu", bias: bool = False):
        super().__init__()
        self.activation = GATED[kind]
        self.gate = nn.Linear(d_model, width, bias=bias)
        self.up = nn.Linear(d_model, width, bias=bias)
        self.down = nn.Linear(width, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x ``[..., d_model]``, and the result."""
        return project(self.down, self.activation(project(self.gate, x)) * project(self.up, x))


class PlainMLP(nn.Module):
    """down(act(up(x))); ``kind`` is one of PLAIN."""

    def __init__(self, d_model: int, width: int, kind: str = "relu2", bias: bool = False):
        super().__init__()
        self.activation = PLAIN[kind]
        self.up = nn.Linear(d_model, width, bias=bias)
        self.down = nn.Linear(width, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x ``[..., d_model]``, and the result."""
        return project(self.down, self.activation(project(self.up, x)))


def make_mlp(kind: str, d_model: int, width: int, bias: bool) -> GatedMLP | PlainMLP:
    """The MLP of this ``kind``, which is one of GATED or of PLAIN."""
    return (GatedMLP if kind in GATED else PlainMLP)(d_model, width, kind, bias)
