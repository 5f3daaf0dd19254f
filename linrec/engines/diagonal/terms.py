"""What a rule gives to the diagonal engine; see :mod:`linrec.engines.diagonal`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from linrec.rule import Terms

Tokens = Mapping[str, Tensor]


@dataclass(frozen=True)
class Selective:
    """See :mod:`linrec.engines.diagonal.selective`.

    Here is what is not a token: ``constants`` ``[D, N]`` by name (those of rate, into and out that do not depend on
    time; the others are tokens ``[B, T, N]``), skip ``[D]`` or None, and whether the decay is e^{step rate} or
    1 + step rate. The tokens "step" and "x" are ``[B, T, D]``.
    """

    constants: Mapping[str, Tensor]
    skip: Tensor | None
    exponential: bool

    def of(self, tokens: Tokens, name: str) -> Tensor:
        """rate, into or out: ``[D, N]`` or ``[B, T, N]``."""
        return self.constants[name] if name in self.constants else tokens[name]


@dataclass
class DiagonalTerms(Terms):
    """``tokens`` ``[B, T, ...]`` by name; ``expand`` and ``read`` pointwise in time; ``channels`` the state's shape.

    ``expand`` returns the decay ``[B or 1, L or 1, *channels]``, its logarithm if ``log``, and the input
    ``[B, L, *channels]``. ``recompute`` says that the expanded tensors are much larger than the tokens: the
    backward pass then expands each chunk again instead of keeping all of them. ``constants``, without a time axis, are
    what expand and read find beside the tokens: the engine knows of all that is read again. ``transposed`` says that
    expand and read see the last two axes of the state the other way round, because long rows are quicker.
    ``parallel`` is the algorithm of the parallel form; "convolution" is for a decay that is constant in time,
    and ``gain`` ``[*channels]`` then says that the input is gain * x_t with tokens["x"] ``[B, T, *channels[:-1]]`` and
    that ``read`` is linear in h alone: parallel and chunkwise convolve tokens["x"] with the output's response.
    ``selective`` describes the outer products behind expand and read, where they have that structure.
    Tokens may be in lower precision than the rest; expand and read see them in accumulator precision.
    ``fresh`` is set by the engine where the call starts from the empty state.
    """

    tokens: Tokens
    expand: Callable[[Tokens], tuple[Tensor, Tensor]]
    channels: tuple[int, ...]
    read: Callable[[Tokens, Tensor], Tensor] = lambda tokens, h: h
    log: bool = True
    complex: bool = False
    late: bool = False
    recompute: bool = False
    transposed: bool = False
    constants: Tokens = field(default_factory=dict)
    parallel: Literal["associative", "quadratic", "convolution"] = "associative"
    gain: Tensor | None = None
    selective: Selective | None = None
    fresh: bool = False

    def over_time(self) -> dict[str, Tensor]:
        """The tokens."""
        return dict(self.tokens)

    @property
    def given(self) -> dict[str, Tensor]:
        """What expand and read see."""
        return {**self.tokens, **self.constants}

    def holding(self, tensors: Iterable[Tensor]) -> DiagonalTerms:
        """The same with other tokens and constants, given in their order."""
        found = iter(tensors)
        tokens = {name: next(found) for name in self.tokens}
        return replace(self, tokens=tokens, constants={name: next(found) for name in self.constants})

    def widened(self) -> DiagonalTerms:
        """The same with all tokens in accumulator precision."""
        return replace(self, tokens=self.widened_tokens())

    def widened_tokens(self) -> dict[str, Tensor]:
        """The tokens in accumulator precision."""
        dtype = self.accumulator
        return {name: x.to(dtype) for name, x in self.tokens.items()}

    def reading(self, read: Callable[[Tokens, Tensor], Tensor], **more: Tensor) -> DiagonalTerms:
        """The same recurrence read by ``read``, which needs ``more`` tokens."""
        return replace(self, tokens={**self.tokens, **more}, read=read)


def gated_terms(g: Tensor, x: Tensor) -> DiagonalTerms:
    """h_t = e^{g_t} h_{t-1} + x_t with g and x ``[B, T, ...]``, small enough to be tokens themselves."""
    return DiagonalTerms(
        {"g": g, "x": x}, lambda t: (t["g"], t["x"]), channels=tuple(x.shape[2:]), parallel="quadratic"
    )
