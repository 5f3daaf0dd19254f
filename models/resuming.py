"""Where generate goes on: which of its ids a cache has read, by the ids, the mask, or their number."""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.errors import ArgumentError, ShapeError
from linrec.models.read_cache import UNKNOWN, LinrecCache


def resumed(cache: LinrecCache, ids: Tensor, mask: Tensor | None) -> LinrecCache:
    """A cache of its own for generate, which is given ``ids [R, T]`` and ``mask [R, T or more]`` beside ``cache``.

    A mask that is longer than the ids covers what was read, and the ids are new. Otherwise they are the whole
    sequence and must begin with the tokens read; where their masks differ, or nothing is new, the whole is read from
    nothing. With ``by_count``, ids that are fewer than the tokens read, and no beginning of them, are new as well.
    Raises ArgumentError for what is neither, and for whole sequences where nobody knows the tokens read.
    """
    new, count, length = cache.fork(), cache.count, ids.shape[1]
    new.prompt = None
    if cache.rows() not in (None, ids.shape[0]):
        raise ShapeError(f"the state has {cache.rows()} rows, expected {ids.shape[0]}, as input_ids")
    if new.masked not in (None, length):
        if mask is None:  # transformers drops a mask without padding
            mask = ids.new_ones(ids.shape[0], new.masked)
        return _given_by_mask(new, length, mask)
    if count == 0:
        return new
    if new.tokens is None or count is None or bool((new.tokens == UNKNOWN).any()):
        raise ArgumentError(
            "nobody knows which tokens this state has read, so whether input_ids hold them is ambiguous: give "
            "LinrecCache(state, tokens=<the ids it has read>), or new ids alone with an attention_mask that covers the "
            "ids read before as well"
        )
    tokens = new.tokens
    if length >= count and _agree(tokens, ids[:, :count], mask):
        if length == count or not _same_mask(new.real, mask, count):
            new = LinrecCache()
            new.recording, new.piece, new._kept = cache.recording, cache.piece, [(0, None)]
        return new
    beginning = length <= count and _agree(tokens[:, :length], ids, mask)
    if cache.by_count and length <= count and not beginning:
        new.skipped = count
        return new
    raise ArgumentError(
        f"input_ids have {length} columns and do not go on from the {count} tokens that the state has read: expected "
        "the whole sequence, which begins with them, or new ids alone with an attention_mask of "
        f"{count} + {length} columns"
    )


def _given_by_mask(cache: LinrecCache, length: int, mask: Tensor) -> LinrecCache:
    before = mask.shape[1] - length
    if before < 0 or cache.count not in (None, before):
        known = "" if cache.count is None else f" + the {cache.count} columns read"
        raise ShapeError(
            f"attention_mask: expected as many columns as input_ids, {length}{known}, got {mask.shape[1]}"
        )
    if cache.count is None:
        cache.tokens = torch.full((mask.shape[0], before), UNKNOWN, dtype=torch.long, device=mask.device)
        cache.real, cache.at = mask[:, :before].bool(), before
    elif not _same_mask(cache.real, mask, before):
        raise ArgumentError("attention_mask differs from the mask with which the state has read its tokens")
    cache.skipped = before
    return cache


def _agree(read: Tensor, ids: Tensor, mask: Tensor | None) -> bool:
    differ = read != ids.to(read.device)
    return not bool((differ if mask is None else differ & mask[:, : ids.shape[1]].bool()).any())


def _same_mask(real: Tensor | None, mask: Tensor | None, count: int) -> bool:
    if mask is None:
        return real is None or bool(real.all())
    now = mask[:, :count].bool()
    return bool(now.all()) if real is None else torch.equal(now, real)
