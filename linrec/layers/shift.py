"""The token before, for layers that mix each token with its predecessor."""

from __future__ import annotations

import torch
from torch import Tensor


def token_shift(x: Tensor, last: Tensor | None, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(the token before each of x ``[B, T, d]``, the last token ``[B, d]`` of each row or segment).

    ``last`` is the token before the first one; None stands for zeros. A row or segment without tokens keeps it.
    """
    if cu_seqlens is None:
        last = x.new_zeros(x.shape[0], x.shape[2]) if last is None else last.to(x.dtype)
        history = torch.cat([last[:, None], x], dim=1)
        return history[:, :-1], history[:, -1]
    rows = cu_seqlens.numel() - 1
    last = x.new_zeros(rows, x.shape[2]) if last is None else last.to(x.dtype)
    start, end = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    some = (end > start).nonzero().flatten()
    before = torch.cat([x[0, :1], x[0, :-1]]).index_copy(0, start[some], last[some])
    return before[None], last.index_copy(0, some, x[0, end[some] - 1])
