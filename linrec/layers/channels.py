"""Elementwise recurrent layers: every channel remembers on its own, projections mix the channels."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linrec import rules
from linrec.engines.numerics.forward_mode import silu
from linrec.errors import ConfigError
from linrec.layers.base import Layer
from linrec.layers.parts import GatedRMSNorm, ShortConvolution, widened
from linrec.layers.projection import project
from linrec.layers.shift import token_shift


class ChannelsState(NamedTuple):
    """conv: the inputs that the convolution still needs (None without one); memory ``[B, D]``."""

    conv: Tensor | None
    memory: Tensor | None


class ChannelsLayer(Layer):
    """Input projection, an elementwise rule, output projection.

    ``expand * d_model`` channels; ``conv_size`` > 0 puts a short convolution before the input projection.
    ``num_heads`` is taken because every layer takes it; channels do not form heads here, so it changes nothing.
    Raises ConfigError for sizes that do not fit.
    """

    parts: ClassVar[int]  # what the input projection makes of a token, in pieces of ``inner`` channels
    bias: ClassVar[bool] = False

    def __init__(
        self,
        d_model: int,
        num_heads: int = 1,
        *,
        expand: float = 1.0,
        conv_size: int = 0,
        chunk_size: int | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        self.d_model, self.inner = d_model, int(expand * d_model)
        if d_model < 1 or self.inner < 1:
            raise ConfigError(f"{type(self).__name__}: d_model={d_model}, expand={expand} leave no channels")
        self.how: dict[str, Any] = {"chunk_size": chunk_size, "backend": backend}
        self.conv = ShortConvolution(d_model, conv_size, bias=True, activation=False) if conv_size else None
        self.in_proj = nn.Linear(d_model, self.parts * self.inner, bias=self.bias)
        self.out_proj: nn.Module = nn.Linear(self.inner, d_model, bias=False)

    def context(
        self, x: Tensor, conv: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the projection sees of each token, x ``[B, T, d_model]``, and the inputs to remember for the next call.

        conv ``[B, w - 1, d_model]`` are those of the last one.
        """
        return (x, None) if self.conv is None else self.conv(x, conv, cu_seqlens)

    def arguments(self, x: Tensor, parts: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The rule's arguments from the layer's input, x ``[B, T, d_model]``, and its projections ``[B, T, inner]``."""
        raise NotImplementedError

    def output(self, o: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """From the rule's output, o ``[B, T, inner]``, to the layer's."""
        return project(self.out_proj, o)

    def mix(
        self, x: Tensor, state: ChannelsState | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, ChannelsState]:
        """See :class:`Layer`."""
        state = state or ChannelsState(None, None)
        seen, conv = self.context(x, state.conv, cu_seqlens)
        parts = project(self.in_proj, seen).chunk(self.parts, dim=-1)
        o, memory = self.rule(
            **self.arguments(x, parts), state=state.memory, cu_seqlens=cu_seqlens, **self.how
        )
        return self.output(o, parts), ChannelsState(conv, memory)


class HGRN(ChannelsLayer):
    """HGRN (Qin, Yang, Zhong 2023, arXiv:2311.04823): SiLU candidates, forget gates of at least ``lower_bound``,
    and an output RMSNorm times a swish gate. The paper lets the bound rise with depth."""

    rule = rules.hgrn
    parts: ClassVar[int] = 3

    def __init__(
        self,
        d_model: int,
        num_heads: int = 1,
        *,
        lower_bound: float = 0.0,
        norm_eps: float = 1e-5,
        **sizes: Any,
    ):
        super().__init__(d_model, num_heads, **sizes)
        if not 0 <= lower_bound < 1:
            raise ConfigError(f"HGRN: lower_bound must be in [0, 1), got {lower_bound}")
        self.lower_bound = lower_bound
        self.norm = GatedRMSNorm(self.inner, norm_eps)

    def arguments(self, x: Tensor, parts: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """x and g; log(b + (1 - b) f) without leaving the logarithm."""
        g = F.logsigmoid(widened(parts[1]))
        if self.lower_bound:
            bound = g.new_tensor(self.lower_bound)
            g = torch.logaddexp(bound.log(), torch.log1p(-bound) + g)
        return {"x": silu(parts[0]), "g": g}

    def output(self, o: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """Norm, gate, projection."""
        return project(self.out_proj, self.norm(o, parts[2]))


class MinGRU(ChannelsLayer):
    """minGRU (Feng et al. 2024, arXiv:2410.01201) behind a convolution of four tokens, as in the paper's models."""

    rule = rules.min_gru
    parts: ClassVar[int] = 2

    def __init__(self, d_model: int, num_heads: int = 1, *, conv_size: int = 4, **sizes: Any):
        super().__init__(d_model, num_heads, conv_size=conv_size, **sizes)

    def arguments(self, x: Tensor, parts: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """x and z."""
        return dict(zip(("x", "z"), parts, strict=True))


class MinLSTM(ChannelsLayer):
    """minLSTM (Feng et al. 2024, arXiv:2410.01201) behind a convolution of four tokens, as in the paper's models."""

    rule = rules.min_lstm
    parts: ClassVar[int] = 3

    def __init__(self, d_model: int, num_heads: int = 1, *, conv_size: int = 4, **sizes: Any):
        super().__init__(d_model, num_heads, conv_size=conv_size, **sizes)

    def arguments(self, x: Tensor, parts: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """x, f and i."""
        return dict(zip(("x", "f", "i"), parts, strict=True))


class QRNN(ChannelsLayer):
    """QRNN with fo-pooling and filters of two tokens (Bradbury, Merity, Xiong, Socher 2016, arXiv:1611.01576).

    The output is o * c, without a projection after it unless ``expand`` changes the width. ``conv`` in the
    state is the token before.
    """

    rule = rules.qrnn
    parts: ClassVar[int] = 3
    bias: ClassVar[bool] = True

    def __init__(self, d_model: int, num_heads: int = 1, **sizes: Any):
        super().__init__(d_model, num_heads, **sizes)
        self.in_proj = nn.Linear(2 * d_model, self.parts * self.inner)
        if self.inner == d_model:
            self.out_proj = nn.Identity()

    def context(
        self, x: Tensor, conv: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The token before, and the token."""
        before, last = token_shift(x, conv, cu_seqlens)
        return torch.cat([before, x], dim=-1), last

    def arguments(self, x: Tensor, parts: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """x, g and o."""
        return {"x": parts[0].tanh(), "g": F.logsigmoid(widened(parts[1])), "o": parts[2].sigmoid()}


class SRU(ChannelsLayer):
    """Simple recurrent unit (Lei et al. 2017, arXiv:1709.02755): the reset gate leads past the cell to the input,
    so there are d_model channels and no output projection."""

    rule = rules.sru
    parts: ClassVar[int] = 3
    bias: ClassVar[bool] = True

    def __init__(
        self, d_model: int, num_heads: int = 1, *, chunk_size: int | None = None, backend: str = "auto"
    ):
        super().__init__(d_model, num_heads, chunk_size=chunk_size, backend=backend)
        self.out_proj = nn.Identity()

    def arguments(self, x: Tensor, parts: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """x, g, r and y."""
        return {
            "x": parts[0],
            "g": F.logsigmoid(widened(parts[1])),
            "r": parts[2].sigmoid(),
            "y": x.to(parts[0].dtype),
        }
