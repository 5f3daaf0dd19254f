"""What the ways to compute chunks share: options, memory, how a sequence is cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor

from linrec.engines.matrix.terms import MatrixTerms
from linrec.engines.numerics.triangular import BlockSystems
from linrec.rule import Call

CHUNK = 64  # tokens, where nothing else is asked for
Tensors = Mapping[str, Tensor | None]
Span = tuple[int, int]  # first and past-the-last token of a chunk


class Plan(NamedTuple):
    """What a pass needs besides tensors."""

    scale: float
    chunk: int
    predict: str
    readout: str

    @classmethod
    def of(cls, terms: MatrixTerms, call: Call) -> Self:
        """That of a call."""
        return cls(call.scale, call.chunk_size or CHUNK, terms.predict, terms.readout)

    @property
    def reads_now(self) -> bool:
        """Whether the query sees the current token's decay."""
        return self.readout == "post"

    @property
    def predicts_now(self) -> bool:
        """Whether the prediction does."""
        return self.predict == "decayed"


class Stack(NamedTuple):
    """``[N, (2) C, D]``: one block of rows, which is then first and last, or one below the other."""

    whole: Tensor
    first: Tensor
    last: Tensor

    @property
    def double(self) -> bool:
        """Whether there are two blocks."""
        return self.first is not self.last

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """The one, or both."""
        return (self.first, self.last) if self.double else (self.last,)


class Memory(dict[str, Tensor]):
    """Tensors by name that every chunk of the same length uses again."""

    _systems: BlockSystems | None = None

    def __init__(self) -> None:
        super().__init__()
        self._stacks: dict[str, Stack] = {}

    def stack(self, name: str, like: Tensor, blocks: int, *shape: int) -> Stack:
        """Blocks ``[N, C, D]`` of this shape, one below the other, and their views."""
        count, size, width = shape
        known = self._stacks.get(name)
        if known is None or known.last.shape != shape:
            whole = like.new_empty(count, blocks * size, width)
            last = whole[:, -size:]
            known = self._stacks[name] = Stack(whole, whole[:, :size] if blocks > 1 else last, last)
        return known

    def take(self, name: str, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of this shape; its values are left over from the chunk before."""
        if name not in self or self[name].shape != shape:
            self[name] = like.new_empty(shape, dtype=dtype or like.dtype)
        return self[name]

    def rows_first(self, name: str, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor ``[N, C, D]`` in whose memory rows come first, as in arguments ``[1, T, N, D]``."""
        count, size, width = shape
        return self.take(name, like, size, count, width, dtype=dtype).transpose(0, 1)

    def systems(self, like: Tensor, count: int, size: int) -> BlockSystems:
        """Triangular systems of this size; what they hold is left over from the chunk before."""
        if self._systems is None or self._systems.size != size:
            self._systems = BlockSystems(like, count, size)
        return self._systems


def rows(x: Tensor, start: int, stop: int, repeat: int = 1) -> Tensor:
    """``[B, T, H, D]`` -> ``[B H repeat, C, D]``; a view for a batch of one where heads are not shared, or all one."""
    if repeat == 1 and x.shape[0] == 1:
        return x[0, start:stop].transpose(0, 1)
    part = x[:, start:stop].transpose(1, 2)
    if repeat > 1 and part.shape[:2] == (1, 1):
        return part[0].expand(repeat, -1, -1)
    if repeat > 1:
        part = part.repeat_interleave(repeat, dim=1)
    return part.flatten(0, 1) if part.shape[0] > 1 else part[0]


def put_rows(target: Tensor, part: Tensor, start: int, stop: int) -> None:
    """The inverse of :func:`rows`; value heads that share a key head are summed. ``target`` may have no last axis."""
    if target.dim() == 3:
        target = target[..., None]
    batch, _, heads, width = target.shape
    if batch == 1 and heads == len(part):
        target[0, start:stop].transpose(0, 1).copy_(part)
        return
    part = part.view(batch, heads, -1, stop - start, width)
    target[:, start:stop] = (part[:, :, 0] if part.shape[2] == 1 else part.sum(2)).transpose(1, 2)


def chunk_bounds(v: Tensor, chunk: int) -> list[Span]:
    """First and past-the-last token of every chunk of a batch ``[B, T, ...]``; none where there is no sequence."""
    length = v.shape[1] if v.shape[0] else 0
    return [(start, min(start + chunk, length)) for start in range(0, length, chunk)]
