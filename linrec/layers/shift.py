"""The token before, for layers that mix each token with its predecessor."""

from __future__ import annotations

import torch
from torch import Tensor


def token_shift(x: Tensor, last: Tensor | None, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(the token before each of x ``[B, T, d]``, the last token ``[B, d]`` of each row or segment).

    ``last [B, d]`` is the token before the first one; None stands for zeros. A row or segment without tokens keeps it.
    """
    if cu_seqlens is None:
        last = x.new_zeros(x.shape[0], x.shape[2]) if last is None else last.to(x.dtype)
        if x.shape[1] == 1:
            return last[:, None], x[:, 0].clone()  # not the caller's own memory
        history = torch.cat([last[:, None], x], dim=1)
        return history[:, :-1], history[:, -1]
    rows = cu_seqlens.numel() - 1
    last = x.new_zeros(rows, x.shape[2]) if last is None else last.to(x.dtype)
    start, end = cu_seqlens[:-1], cu_seqlens[1:].contiguous()
    row, index = (torch.arange(n, device=x.device, dtype=start.dtype) for n in (rows, x.shape[1]))
    segment = torch.searchsorted(end, index, right=True)
    history = torch.cat([last, x[0]])
    before = history[torch.where(index == start[segment], segment, rows + index - 1)]
    return before[None], history[torch.where(end > start, rows + end - 1, row)]
