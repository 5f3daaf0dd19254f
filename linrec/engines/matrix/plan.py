"""How the chunk algorithms cut a sequence: what a pass needs besides tensors, chunk bounds, rows in and out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Plan(NamedTuple):
    """What a pass needs besides tensors."""

    scale: float
    chunk: int
    predict: str
    readout: str


def rows(x: Tensor, start: int, stop: int, repeat: int = 1) -> Tensor:
    """``[B, T, H, D]`` -> ``[B H repeat, C, D]``; a view for a batch of one where heads are not shared, or all one."""
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
    part = part.view(batch, heads, -1, stop - start, width)
    target[:, start:stop] = (part[:, :, 0] if part.shape[2] == 1 else part.sum(2)).transpose(1, 2)


def chunk_bounds(length: int, chunk: int) -> list[tuple[int, int]]:
    """First and past-the-last token of every chunk."""
    return [(start, min(start + chunk, length)) for start in range(0, length, chunk)]
