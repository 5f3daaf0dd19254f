"""Arguments of the matrix engine, and the layout it computes in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from linrec.engines.numerics.scans import floored
from linrec.rule import Terms

Predict = Literal["decayed", "undecayed"]
Readout = Literal["post", "pre"]


@dataclass
class MatrixTerms(Terms):
    """q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``; the rest optional.

    g ``[B, T, HV]`` or ``[B, T, HV, K]`` log-decay; a the key that reads the state for the prediction and
    b the key it is written back with, both ``[B, T, H or HV, K]`` (b absent: written with k, the delta path);
    bonus ``[HV, K]`` for the "pre" readout. Strengths ``[B, T, HV]``: ``write`` says that write_t v_t is written,
    ``erase``, in the place of a, that a_t = -erase_t k_t. ``skip`` ``[HV]`` adds skip v_t to the output. q, k, v may
    be in lower precision than the rest.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    predict: Predict = "undecayed"
    readout: Readout = "post"
    bonus: Tensor | None = None
    write: Tensor | None = None
    erase: Tensor | None = None
    skip: Tensor | None = None

    def over_time(self) -> dict[str, Tensor]:
        """The tensors with a time axis, by name."""
        named = {n: getattr(self, n) for n in ("q", "k", "v", "g", "a", "b", "write", "erase")}
        return {n: x for n, x in named.items() if x is not None}

    def tensors(self) -> list[Tensor]:
        """All of them."""
        others = (self.bonus, self.skip)
        return [*self.over_time().values(), *(x for x in others if x is not None)]

    @property
    def leading(self) -> Tensor:
        """q."""
        return self.q

    def state_shape(self, rows: int) -> tuple[int, int, int, int]:
        """``[rows, HV, K, V]``."""
        return rows, self.v.shape[2], self.k.shape[3], self.v.shape[3]

    def skipped(self, o: Tensor) -> Tensor:
        """The output with the skip connection."""
        return o if self.skip is None else torch.addcmul(o, self.skip[:, None], self.v)

    def floored(self) -> Self:
        """With log-decays whose sums may be subtracted from each other."""
        return self if self.g is None else replace(self, g=floored(self.g))

    def with_bonus(self, o: Tensor, scale: float) -> Tensor:
        """The output with what q reads of its own token: scale (q . (bonus * k)) write v."""
        if self.bonus is None:
            return o
        repeat = self.v.shape[2] // self.k.shape[2]
        now = ((self.q * self.k).repeat_interleave(repeat, dim=2) * self.bonus).sum(-1, keepdim=True)
        return o + scale * now * (self.v if self.write is None else strengthened(self.write, self.v))

    def explicit(self) -> Self:
        """The same in accumulator precision, with the strengths multiplied into v and a."""
        dtype = self.accumulator
        x = {name: x.to(dtype) for name, x in self.over_time().items()}
        write, erase = x.pop("write", None), x.pop("erase", None)
        if write is not None:
            x["v"] = strengthened(write, x["v"])
        if erase is not None:
            x["a"] = -strengthened(erase, x["k"])
        return replace(self, write=None, erase=None).with_tensors(x)


def delta_terms(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    write: Tensor,
    erase: Tensor | None = None,
    predict: Predict = "decayed",
) -> MatrixTerms:
    """S_t = D S_{t-1} + k_t (write_t v_t - erase_t X_t^T k_t)^T with one strength for both unless two are given."""
    return MatrixTerms(q, k, v, g, predict=predict, write=write, erase=write if erase is None else erase)


def strengthened(beta: Tensor, x: Tensor) -> Tensor:
    """beta_t x_t on value heads: beta ``[B, T, HV]``, x ``[B, T, H or HV, .]`` -> ``[B, T, HV, .]``."""
    return beta[..., None] * on_value_heads(x, beta)


def on_value_heads(x: Tensor, like: Tensor) -> Tensor:
    """x ``[B, T, H or HV, .]`` given to every value head of its group, interleaved; ``like`` is ``[B, T, HV, ...]``."""
    repeat = like.shape[2] // x.shape[2]
    return x if repeat == 1 else x.repeat_interleave(repeat, dim=2)


class Heads(NamedTuple):
    """The layout of computation: heads first, accumulator dtype, scale applied, R = HV // H value heads a key head.

    q, k ``[B, H, 1, T, K]``, v ``[B, H, R, T, V]``, g ``[B, H, R, T, 1 or K]``, a and b ``[B, H, 1 or R, T, K]``,
    bonus ``[H, R, 1, K]``. Every product broadcasts over the group axis.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    a: Tensor | None
    b: Tensor | None
    bonus: Tensor | None

    def rows(self, start: int, stop: int) -> Heads:
        """The tokens ``start .. stop`` of every tensor that has a time axis."""
        q, k, v, g = (x[..., start:stop, :] for x in self[:4])
        a, b = (None if x is None else x[..., start:stop, :] for x in (self.a, self.b))
        return Heads(q, k, v, g, a, b, self.bonus)


def to_heads(terms: MatrixTerms, scale: float) -> Heads:
    """From the time-first layout of a call to the layout of computation."""
    h, hv = terms.k.shape[2], terms.v.shape[2]

    def grouped(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        return x.unflatten(2, (h, x.shape[2] // h)).permute(0, 2, 3, 1, 4)

    g = terms.v.new_zeros(()).expand(terms.v.shape[:3]) if terms.g is None else terms.g
    g = g if g.dim() == 4 else g[..., None]
    bonus = None if terms.bonus is None else terms.bonus.unflatten(0, (h, hv // h)).unsqueeze(2)
    q, k, v, g = (grouped(x) for x in (terms.q, terms.k, terms.v, g))  # type: ignore[assignment]
    return Heads(q if scale == 1 else q * scale, k, v, g, grouped(terms.a), grouped(terms.b), bonus)  # type: ignore[operator, arg-type]


def from_heads(o: Tensor) -> Tensor:
    """``[B, H, R, T, V] -> [B, T, HV, V]``."""
    return o.permute(0, 3, 1, 2, 4).flatten(2, 3)
