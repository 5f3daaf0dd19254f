"""Caches of tokens: named columns ``[B, L, ...]`` and how many tokens each row has seen.

Row b holds its tokens from slot 0 on; the rest is padding. A cache with a window of W keeps the last W - 1
tokens, all that the next query can see besides itself, while ``length`` goes on counting. ``length``, ``held`` and
``lengths`` are numbers of tokens, ``[B]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from linrec.engines.numerics.checks import readable, transformed
from linrec.errors import DtypeError, ShapeError


class KVCache(NamedTuple):
    """k ``[B, L, H, K]``, v ``[B, L, H, V]``; row b has seen ``length[b]`` tokens, L >= what it holds of them."""

    k: Tensor
    v: Tensor
    length: Tensor


class GatedCache(NamedTuple):
    """A KVCache with c ``[B, L, HQ]``, the cumulative log-decay of each token in float64, 1e30 if it is forgotten for
    good."""

    k: Tensor
    v: Tensor
    c: Tensor
    length: Tensor


FORGOTTEN = -1e4  # a log-decay that no difference of scores makes up for: nothing before it is seen again
FAR = 1e30  # a cumulative log-decay that no later one comes near: plus infinity for every purpose
AnyCache = TypeVar("AnyCache", bound=tuple)


def empty_cache(kind: Callable[..., AnyCache], fresh: Sequence[Tensor], segments: int) -> AnyCache:
    """A cache of ``kind`` without tokens, its columns like those of ``fresh``."""
    columns = [x.new_zeros(segments, 0, *x.shape[2:]) for x in fresh]
    return kind(*columns, torch.zeros(segments, dtype=torch.int64, device=fresh[0].device))


def held_tokens(length: Tensor, window: int | None) -> Tensor:
    """How many tokens each row holds, from length ``[B]``, those that it has seen."""
    return length if window is None else length.clamp(max=window - 1)


def is_even(held: Tensor, size: int) -> bool:
    """Whether every row holds ``size`` tokens, held ``[B]``: then slots are positions and nothing needs moving or
    masking."""
    return size == 0 or bool((held == size).all())


def join(
    old: Sequence[Tensor], fresh: Sequence[Tensor], held: Tensor, lengths: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Columns with the fresh tokens directly behind each row's own, and how many tokens the rows now hold.

    held ``[B]``; all T fresh tokens are real unless ``lengths [B]`` says how many.
    """
    size, new = old[0].shape[1], fresh[0].shape[1]
    after = held + (new if lengths is None else lengths)
    pairs = list(zip(old, fresh, strict=True))
    if is_even(held, size):
        return [torch.cat(pair, dim=1) for pair in pairs], after
    # Rows of different lengths: a new slot takes the row's next token, all other slots keep what they held.
    slots = torch.arange(size + new, device=held.device)
    index = slots - held[:, None]
    is_new = (index >= 0) & (index < new)
    take = torch.where(is_new, size + index.clamp(0, max(new - 1, 0)), slots).clamp(max=size + new - 1)
    longest = int(after.max()) if after.numel() else 0
    return [_take(torch.cat(pair, dim=1), take[:, :longest]) for pair in pairs], after


def keep_last(columns: Sequence[Tensor], have: Tensor, window: int | None) -> list[Tensor]:
    """The columns cut to what a window still needs of each row, which has ``have [B]`` tokens."""
    if window is None or columns[0].shape[1] < window:
        return list(columns)
    if is_even(have, columns[0].shape[1]):
        return [x[:, x.shape[1] - (window - 1) :] for x in columns]
    first = (have - (window - 1)).clamp(min=0)
    take = first[:, None] + torch.arange(window - 1, device=have.device)
    return [_take(x, take.clamp(max=x.shape[1] - 1)) for x in columns]


def last_of_row(column: Tensor, held: Tensor) -> Tensor:
    """``[B, L, ...], [B] -> [B, 1, ...]``: each row's last token of as many as it holds, zero where it has none."""
    if column.shape[1] == 0:
        return column.new_zeros(column.shape[0], 1, *column.shape[2:])
    last = _take(column, (held - 1).clamp(min=0)[:, None])
    return torch.where((held > 0).view(-1, *[1] * (column.dim() - 1)), last, 0)


def cumulative(g: Tensor, column: Tensor, held: Tensor) -> Tensor:
    """``[B, T, HQ], [B, L, HQ], [B] -> [B, T, HQ]``: the cumulative log-decay of fresh tokens, going on from a
    cache."""
    return last_of_row(column, held) + g.to(column.dtype).cumsum(1)


def without_resets(g: Tensor, start: Tensor | int) -> tuple[Tensor, Tensor | None]:
    """Log-decays without full resets (-inf, or no more than ``FORGOTTEN``): sums over these have no difference, or
    lose all digits. And the slot ``[B, T, HQ]`` of the last reset up to each fresh token, 0 before the first, or None.

    g ``[B, T, HQ]``. ``start`` is the slot of the first fresh token, of all rows or, ``start [B]``, of each.
    """
    if readable(g) and not transformed(g) and (not g.numel() or float(g.detach().amin()) > FORGOTTEN):
        return g, None
    reset = g <= FORGOTTEN
    slot = torch.arange(g.shape[1], device=g.device)[:, None]
    slot = slot + (start[:, None, None] if isinstance(start, Tensor) else start)
    return g.masked_fill(reset, 0.0), torch.where(reset, slot, 0).cummax(1).values


def forget(c: Tensor, first: Tensor | None) -> Tensor:
    """The column c ``[B, L, HQ]`` once the last of the tokens has been; ``first [B, T, HQ]`` of
    :func:`without_resets`."""
    if first is None or not first.shape[1]:
        return c
    return c.masked_fill(torch.arange(c.shape[1], device=c.device)[:, None] < first[:, -1:], FAR)


def unseen(first: Tensor, size: int, offset: int = 0) -> Tensor:
    """Which of the slots ``offset ..`` come before ``first`` ``[B, n, HQ]``: ``[B, HQ, n, size]``."""
    return torch.arange(offset, offset + size, device=first.device) < first.transpose(1, 2)[..., None]


def gate_dtype(g: Tensor) -> torch.dtype:
    """float64 where g's device has it, g ``[...]``: only differences of long sums are used, and float32 would lose
    them."""
    return g.dtype if g.device.type == "mps" else torch.float64


def check_cache(state: Any, empty: AnyCache, who: str) -> AnyCache:
    """The state; DtypeError or ShapeError unless it has the columns of ``empty``."""
    kind = type(empty)
    names: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    if not isinstance(state, kind):
        raise DtypeError(
            f"{who}: state must be a {kind.__name__}({', '.join(names)}), got {type(state).__name__}"
        )
    for name, got, want in zip(names, state, empty, strict=True):
        if not isinstance(got, Tensor):
            raise DtypeError(f"{who}: state.{name} must be a tensor, got {type(got).__name__}")
        same = got.shape[:1] + got.shape[2:] == want.shape[:1] + want.shape[2:]
        if got.dim() != want.dim() or not same:
            shown = [*want.shape[:1], "L", *want.shape[2:]] if want.dim() > 1 else list(want.shape)
            raise ShapeError(f"{who}: state.{name} must be {shown}, got {list(got.shape)}")
        if got.dtype != want.dtype:
            raise DtypeError(f"{who}: state.{name} must be {want.dtype}, got {got.dtype}")
    return state


def _take(x: Tensor, slots: Tensor) -> Tensor:
    """Row b of the result is ``x[b, slots[b]]``."""
    return x[torch.arange(x.shape[0], device=x.device)[:, None], slots]
