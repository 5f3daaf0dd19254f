"""Packed sequences: several segments of different lengths in one batch row, described by ``cu_seqlens``.

An engine only ever sees ordinary batches. Segments of similar length are gathered into a zero-padded
batch, run there, and put back; padding costs less than a factor of two whatever the lengths are.
A reset is thereby exact: it is never emulated by a large negative decay.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from torch import Tensor

from linrec.errors import DtypeError, ShapeError
from linrec.state import State, select_rows, stack_rows

Tensors = Mapping[str, Tensor]
Run = Callable[[Tensors, State, Tensor], tuple[Tensor, State]]


def check_cu_seqlens(cu_seqlens: Tensor, batch: int, length: int, who: str) -> list[int]:
    """The boundaries as a list; ShapeError unless they cover ``[0, length]`` of a batch of one."""
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        came = getattr(cu_seqlens, "dtype", type(cu_seqlens).__name__)
        raise DtypeError(f"{who}: cu_seqlens must be an int32 or int64 tensor, got {came}")
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1:
        raise ShapeError(f"{who}: cu_seqlens must have shape [S + 1], got {list(cu_seqlens.shape)}")
    if batch != 1:
        raise ShapeError(
            f"{who}: with cu_seqlens the batch must be 1 (segments lie along T), got B = {batch}"
        )
    bounds: list[int] = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != length or any(b < a for a, b in itertools.pairwise(bounds)):
        raise ShapeError(f"{who}: cu_seqlens must rise from 0 to T = {length}, got {bounds}")
    return bounds


def length_groups(lengths: list[int]) -> list[list[int]]:
    """Segment numbers grouped so that within a group the longest is less than twice the shortest, or than 64.

    Padding a few short segments costs less than one more call. Empty segments are by themselves.
    """
    groups: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        groups.setdefault(length and max(length, 32).bit_length(), []).append(number)
    return list(groups.values())


def equal_lengths(lengths: list[int]) -> list[list[int]]:
    """Segment numbers grouped by exactly equal length: no padding, for mechanisms that zeros would disturb."""
    groups: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        groups.setdefault(length, []).append(number)
    return list(groups.values())


def by_segment(
    run: Run,
    tensors: Tensors,
    state: State,
    bounds: list[int],
    grouping: Callable[[list[int]], list[list[int]]] = length_groups,
) -> tuple[Tensor, State]:
    """Apply ``run(tensors, state, lengths) -> (o, state)`` to every segment of a packed batch of one.

    ``tensors`` are ``[1, T, ...]``; the state has one row a segment; ``o`` comes back as ``[1, T, ...]``.
    ``run`` receives ``[n, L, ...]`` tensors padded with zeros at the end and the n true lengths.
    """
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    device = next(iter(tensors.values())).device
    outputs, states, order_tokens, order_rows = [], [], [], []
    for rows in grouping(lengths) or [[]]:
        longest = max((lengths[r] for r in rows), default=0)
        real = torch.tensor([lengths[r] for r in rows], device=device, dtype=torch.long)
        start = torch.tensor([bounds[r] for r in rows], device=device, dtype=torch.long)
        offset = torch.arange(longest, device=device)
        keep = offset < real[:, None]
        source = torch.where(keep, start[:, None] + offset, 0)
        row_index = torch.tensor(rows, device=device, dtype=torch.long)
        o, new_state = run(
            {name: _gather(x, source, keep) for name, x in tensors.items()},
            select_rows(state, row_index),
            real,
        )
        token = rearrange(keep, "n L -> (n L)").nonzero()[:, 0]
        outputs.append(rearrange(o, "n L ... -> (n L) ...").index_select(0, token))
        order_tokens.append(source[keep])
        states.append(new_state)
        order_rows += rows
    tokens = torch.cat(order_tokens).argsort()
    rows_back = torch.tensor(order_rows, device=device, dtype=torch.long).argsort()
    return torch.cat(outputs).index_select(0, tokens)[None], select_rows(stack_rows(states), rows_back)


def _gather(x: Tensor, source: Tensor, keep: Tensor) -> Tensor:
    """``[1, T, ...] -> [n, L, ...]``, zero where ``keep`` is false."""
    flat = x[0] if x.shape[1] else x.new_zeros(1, *x.shape[2:])
    rows = flat.index_select(0, rearrange(source, "n L -> (n L)"))
    rows = rearrange(rows, "(n L) ... -> n L ...", n=source.shape[0], L=source.shape[1])
    return rows.masked_fill(~keep.reshape(*keep.shape, *[1] * (rows.dim() - 2)), 0)  # 0 * nan would be nan
