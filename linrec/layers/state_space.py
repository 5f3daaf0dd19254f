"""Time-invariant state-space layers: S4D, S5, LRU."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from linrec import rules
from linrec.engines.numerics.forward_mode import glu
from linrec.errors import ConfigError
from linrec.layers.base import Layer
from linrec.layers.parts import widened
from linrec.layers.projection import project


class StateSpaceState(NamedTuple):
    """memory: ``[B, D, N, 2]`` (S4D) or ``[B, N, 2]``, real and imaginary part."""

    memory: Tensor | None


class StateSpaceLayer(Layer):
    """A linear state space with skip D, GELU, and a gated linear unit as the output projection.

    ``state_size`` counts real dimensions of the continuous system: half as many complex states are stored, one of
    each conjugate pair. ``num_heads`` changes nothing. Raises ConfigError for sizes that do not fit.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int = 1,
        *,
        state_size: int = 64,
        chunk_size: int | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        if d_model < 1 or state_size < 2 or state_size % 2:
            raise ConfigError(
                f"{type(self).__name__}: d_model={d_model} must be positive, state_size={state_size} even"
            )
        self.d_model, self.states = d_model, state_size // 2
        self.how: dict[str, Any] = {"chunk_size": chunk_size, "backend": backend}
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model)

    def parameters_of_rule(self) -> dict[str, Tensor]:
        """The rule's arguments besides x and D."""
        raise NotImplementedError

    def mix(
        self, x: Tensor, state: StateSpaceState | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, StateSpaceState]:
        """See :class:`Layer`."""
        memory = None if state is None else state.memory
        y, memory = self.rule(
            x, **self.parameters_of_rule(), D=self.D, state=memory, cu_seqlens=cu_seqlens, **self.how
        )
        return glu(project(self.out_proj, F.gelu(y))), StateSpaceState(memory)


def log_uniform(size: int, low: float = 1e-3, high: float = 0.1) -> Tensor:
    """The logarithm of a number between ``low`` and ``high``, uniform."""
    return torch.empty(size).uniform_(math.log(low), math.log(high))


def normal_pair(*shape: int, std: float = 1.0) -> Tensor:
    """Complex normal numbers of variance std^2 as ``[2, *shape]``, real and imaginary parts."""
    return torch.randn(2, *shape) * (std / math.sqrt(2))


class S4D(StateSpaceLayer):
    """S4D-Lin (Gu, Gupta, Goel, Ré 2022, arXiv:2206.11893): A = -1/2 + i pi n, zero-order hold."""

    rule = rules.s4d

    def __init__(self, d_model: int, num_heads: int = 1, **sizes: Any):
        super().__init__(d_model, num_heads, **sizes)
        shape = (d_model, self.states)
        self.log_dt = nn.Parameter(log_uniform(d_model))
        self.log_rate = nn.Parameter(torch.full(shape, math.log(0.5)))
        frequency = math.pi * torch.arange(self.states)
        self.frequency = nn.Parameter(repeat(frequency, "N -> D N", D=d_model).contiguous())
        self.C = nn.Parameter(normal_pair(*shape))

    def parameters_of_rule(self) -> dict[str, Tensor]:
        """dt, A, C."""
        return {
            "dt": widened(self.log_dt).exp(),
            "A_re": -widened(self.log_rate).exp(),
            "A_im": self.frequency,
            "C_re": self.C[0],
            "C_im": self.C[1],
        }


def hippo_normal(size: int) -> tuple[Tensor, Tensor]:
    """Upper half of the spectrum of HiPPO-LegS's normal part, ``size / 2`` frequencies (its real part is -1/2), and
    the eigenvectors ``[size, size / 2]``, complex128."""
    n = torch.arange(size, dtype=torch.float64)
    root = (1 + 2 * n).sqrt()
    legs = -(torch.outer(root, root).tril() - n.diag())
    normal = legs + torch.outer(root, root) / 2
    skew = normal + 0.5 * torch.eye(size, dtype=torch.float64)
    frequency, vectors = torch.linalg.eigh(skew * -1j)
    return frequency[size // 2 :], vectors[:, size // 2 :]


class S5(StateSpaceLayer):
    """S5 (Smith, Warrington, Linderman 2022, arXiv:2208.04933): HiPPO-N eigenvalues, zero-order hold."""

    rule = rules.s5

    def __init__(self, d_model: int, num_heads: int = 1, **sizes: Any):
        super().__init__(d_model, num_heads, **sizes)
        size = 2 * self.states
        frequency, vectors = hippo_normal(size)
        into = vectors.mH @ (torch.randn(size, d_model) / math.sqrt(d_model)).to(vectors.dtype)
        pair = rearrange(normal_pair(d_model, size), "both D N -> D N both").contiguous()
        out = torch.view_as_complex(pair).to(vectors.dtype)
        out = out @ vectors / math.sqrt(size)
        self.log_dt = nn.Parameter(log_uniform(self.states))
        self.log_rate = nn.Parameter(torch.full((self.states,), math.log(0.5)))
        self.frequency = nn.Parameter(frequency.float())
        self.B = nn.Parameter(torch.stack([into.real, into.imag]).float())
        self.C = nn.Parameter(torch.stack([out.real, out.imag]).float())

    def parameters_of_rule(self) -> dict[str, Tensor]:
        """dt, A, B, C."""
        return {
            "dt": widened(self.log_dt).exp(),
            "A_re": -widened(self.log_rate).exp(),
            "A_im": self.frequency,
            "B_re": self.B[0],
            "B_im": self.B[1],
            "C_re": self.C[0],
            "C_im": self.C[1],
        }


class LRU(StateSpaceLayer):
    """LRU (Orvieto et al. 2023, arXiv:2303.06349): eigenvalues uniform on the ring between ``min_radius`` and
    ``max_radius``, with phases in [0, ``max_phase``]; half of ``state_size`` complex states, no conjugates."""

    rule = rules.lru

    def __init__(
        self,
        d_model: int,
        num_heads: int = 1,
        *,
        min_radius: float = 0.9,
        max_radius: float = 0.999,
        max_phase: float = 2 * math.pi,
        **sizes: Any,
    ):
        super().__init__(d_model, num_heads, **sizes)
        if not 0 <= min_radius < max_radius < 1:
            raise ConfigError(
                f"LRU: expected 0 <= min_radius < max_radius < 1, got {min_radius}, {max_radius}"
            )
        n = self.states
        radius = torch.empty(n).uniform_(min_radius**2, max_radius**2).sqrt()
        self.log_rate = nn.Parameter((-radius.log()).log())
        self.log_angle = nn.Parameter(torch.empty(n).uniform_(1e-4, max_phase).log())
        self.B = nn.Parameter(normal_pair(n, d_model, std=1 / math.sqrt(d_model)))
        self.C = nn.Parameter(normal_pair(d_model, n, std=math.sqrt(2 / n)))

    def parameters_of_rule(self) -> dict[str, Tensor]:
        """g, angle, B, C."""
        return {
            "g": -widened(self.log_rate).exp(),
            "angle": widened(self.log_angle).exp(),
            "B_re": self.B[0],
            "B_im": self.B[1],
            "C_re": self.C[0],
            "C_im": self.C[1],
        }
