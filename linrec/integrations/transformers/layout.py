"""Which tokens of a call are real, and where documents begin in it.

A model's call says so in up to five ways: ``attention_mask`` (padding), ``position_ids`` that start again, boundaries
``cu_seq_lens_q``, numbers ``seq_idx``, and the length of what a cache holds already. Mixers ask for one thing, a
:class:`Layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linrec.state import State, map_tensors


class Packing(NamedTuple):
    """The real tokens of a batch, side by side. Every row of the batch has at least one segment, if an empty one.

    ``index`` ``[N]``: their places in the flattened batch; ``cu_seqlens`` ``[S + 1]``; ``first`` and ``last`` ``[B]``:
    the first and the last segment of each row.
    """

    index: Tensor  # type: ignore[assignment]
    cu_seqlens: Tensor
    first: Tensor
    last: Tensor


class Layout:
    """``real`` ``[B, T]``: which tokens are no padding; ``starts`` ``[B, T]``: at which of them a document begins that
    is not the first of its row (the first one goes on from the state that there is). None: all are real; no such token.

    ``bounds`` ``[S + 1]``: of documents in a batch of one row without padding, where a call gave them.
    """

    def __init__(self, real: Tensor | None, starts: Tensor | None, bounds: Tensor | None = None):
        self.real, self.starts, self.bounds = real, starts, bounds
        self._packing: Packing | None = None

    @property
    def packing(self) -> Packing:
        """Found once a call of the model, for all of its mixers."""
        if self._packing is None:
            if not torch.compiler.is_compiling():
                self._packing = _packed(self.real, self.starts)
            elif self.bounds is not None:
                self._packing = _bounded(self.bounds, self.starts)
            else:
                self._packing = _sorted(self.real)
        return self._packing

    def gathered(self, x: Tensor) -> Tensor:
        """``[B, T, ...] -> [1, N, ...]``: the real tokens."""
        return x.flatten(0, 1).index_select(0, self.packing.index)[None]

    def put_back(self, x: Tensor, length: int) -> Tensor:
        """``[1, N, ...] -> [B, T, ...]``, zero where the padding is."""
        batch = self.packing.first.shape[0]
        whole = x.new_zeros(batch * length, *x.shape[2:])
        whole = whole.index_copy(0, self.packing.index, x[0]).unflatten(0, (batch, length))
        if self.real is None or not torch.compiler.is_compiling():
            return whole
        return whole.masked_fill(~self.real.view(batch, length, *[1] * (whole.dim() - 2)), 0)

    def for_segments(self, state: State) -> State:
        """A row of a state for every segment: the first of each row of the batch goes on from it, others from zero."""
        packing = self.packing
        count = packing.cu_seqlens.shape[0] - 1
        return map_tensors(lambda x: x.new_zeros(count, *x.shape[1:]).index_copy(0, packing.first, x), state)

    def for_rows(self, state: State) -> State:
        """Of a state with a row for every segment, that of each row's last segment."""
        return map_tensors(lambda x: x.index_select(0, self.packing.last), state)


def _packed(real: Tensor | None, starts: Tensor | None) -> Packing:
    like = real if real is not None else starts
    assert like is not None
    real = torch.ones_like(like) if real is None else real
    begins = torch.zeros_like(like) if starts is None else starts.clone()
    begins[:, 0] = True
    segment = begins.flatten().cumsum(0) - 1
    index = real.flatten().nonzero().flatten()
    lengths = torch.bincount(segment[index], minlength=int(segment[-1]) + 1)
    rows = segment.view(like.shape)
    return Packing(index, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), rows[:, 0], rows[:, -1])


def _sorted(real: Tensor | None) -> Packing:
    """For graphs, in which no size may depend on values: all tokens, padding as one more segment behind the rows."""
    assert real is not None
    index = (~real).flatten().int().argsort(stable=True)
    lengths = torch.cat([real.sum(1), (~real).sum()[None]])
    row = torch.arange(real.shape[0], device=real.device)
    return Packing(index, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), row, row)


def _bounded(bounds: Tensor, starts: Tensor | None) -> Packing:
    """For graphs: as many documents as were told, in one row."""
    assert starts is not None
    index = torch.arange(starts.shape[1], device=bounds.device)
    return Packing(
        index, bounds, torch.zeros_like(index[:1]), torch.full_like(index[:1], bounds.shape[0] - 2)
    )


def apply(
    rule: Callable[..., tuple[Tensor, State]],
    over_time: Mapping[str, Tensor],
    layout: Layout | None,
    state: State = None,
    **others: Any,
) -> tuple[Tensor, State]:
    """``rule(**over_time, **others, state=state)``, for the real tokens and each document by itself.

    ``over_time`` are the arguments ``[B, T, ...]``. The output is zero at the padding; the state is that after each
    row's last document.
    """
    if layout is None:
        return rule(**over_time, **others, state=state)
    length = next(iter(over_time.values())).shape[1]
    packed = {name: layout.gathered(x) for name, x in over_time.items()}
    before = None if state is None else layout.for_segments(state)
    o, after = rule(**packed, **others, state=before, cu_seqlens=layout.packing.cu_seqlens)
    return layout.put_back(o, length), layout.for_rows(after)


def layout_of(said: Mapping[str, Any], batch: int, length: int) -> Layout | None:
    """What a model's call says of the ``[batch, length]`` tokens that a mixer gets; None: all real, one document a row.

    What has another shape than these tokens (a mask of four dimensions, say) says nothing of them. While a graph is
    traced, which no value may change, only a mask and boundaries count, and for one token nothing.
    """
    real = _real(said.get("attention_mask"), batch, length)
    if length == 1:
        return None if real is None or torch.compiler.is_compiling() else Layout(real, None)
    bounds = said.get("cu_seq_lens_q")
    starts = _boundaries(bounds, batch, length)
    if torch.compiler.is_compiling():
        if starts is not None and batch == 1 and real is None:
            return Layout(None, starts, bounds)
        return None if real is None else Layout(real, None)
    starts = _any(
        [
            starts,
            _new_numbers(said.get("seq_idx"), batch, length),
            _restarts(said.get("position_ids"), real, batch, length),
        ]
    )
    return None if real is None and starts is None else Layout(real, starts)


def _real(mask: Any, batch: int, length: int) -> Tensor | None:
    if isinstance(mask, Mapping):  # made beforehand, one for every kind of mixer
        masks = [_real(each, batch, length) for each in mask.values()]
        return next((each for each in masks if each is not None), None)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < length:
        return None
    real = mask[:, mask.shape[1] - length :] != 0
    return None if _certainly(real.all()) else real


def _new_numbers(numbers: Any, batch: int, length: int) -> Tensor | None:
    """Where a token's document has another number than that of the token before."""
    if not isinstance(numbers, Tensor) or numbers.shape != (batch, length):
        return None
    return torch.nn.functional.pad(numbers.diff(dim=1) != 0, (1, 0))


def _boundaries(cu_seqlens: Any, batch: int, length: int) -> Tensor | None:
    """Of sequences that lie side by side in the flattened batch."""
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dim() != 1:
        return None
    starts = torch.zeros(batch * length + 1, dtype=torch.bool, device=cu_seqlens.device)
    starts = starts.index_fill(0, cu_seqlens.clamp(max=batch * length).long(), True)[:-1].view(batch, length)
    return starts & (torch.arange(length, device=starts.device) > 0)


def _restarts(positions: Any, real: Tensor | None, batch: int, length: int) -> Tensor | None:
    """Where a real token's position is not the next one after that of the real token before it."""
    positions = _text_positions(positions, batch, length)
    if positions is None:
        return None
    place = torch.arange(length, device=positions.device).expand(batch, length)
    if real is None:
        return torch.nn.functional.pad(positions.diff(dim=1) != 1, (1, 0))
    latest = torch.where(real, place, -1).cummax(1).values
    before = torch.nn.functional.pad(latest[:, :-1], (1, 0), value=-1)
    last = positions.gather(1, before.clamp(min=0))
    return real & (before >= 0) & (positions != last + 1)


def _text_positions(positions: Any, batch: int, length: int) -> Tensor | None:
    """``[B, T]``; of a model that sees pictures, the first of four rows of positions are those in the text."""
    if not isinstance(positions, Tensor) or positions.is_floating_point():
        return None
    if positions.dim() == 3:
        if positions.shape[0] != 4:
            return None
        positions = positions[0]
    if positions.dim() == 1:
        positions = positions[None]
    if positions.dim() != 2 or positions.shape[1] != length or positions.shape[0] not in (1, batch):
        return None
    return positions.expand(batch, length)


def _any(found: list[Tensor | None]) -> Tensor | None:
    starts: Tensor | None = None
    for each in found:
        if each is not None:
            starts = each if starts is None else starts | each
    return None if starts is None or _certainly(~starts.any()) else starts


def _certainly(condition: Tensor) -> bool:
    """Whether it holds, where that can be known: not while a graph is traced."""
    return not torch.compiler.is_compiling() and bool(condition)
