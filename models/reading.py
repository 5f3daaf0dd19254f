"""Reading embeddings with a language model: on from a cache, or one packed document after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from linrec.models.documents import Documents
from linrec.models.language_model import BlockCall, LanguageModel
from linrec.models.read_cache import UNKNOWN, LinrecCache


class Read(NamedTuple):
    """``h [B, T, d_model]``, what the head reads (fewer columns, the last ones, if no more are needed), the cache after
    it, and where asked for the hidden states: every block's input and h."""

    h: Tensor
    cache: LinrecCache
    hidden: tuple[Tensor, ...] | None


class Hidden:
    """Calls blocks as ``call`` does, and collects what goes into them."""

    def __init__(self, call: BlockCall | None, d_model: int):
        self.call, self.d_model = call, d_model
        self.inputs: list[Tensor] = []

    def __call__(
        self, block: Callable[..., tuple[Tensor, object]], x: Tensor, *rest: object
    ) -> tuple[Tensor, object]:
        """The block's output and state, from x ``[B, T, d_model + beside]``, whose stream is kept."""
        self.inputs.append(x[..., : self.d_model])
        return block(x, *rest) if self.call is None else self.call(block, x, *rest)


def read_rows(
    model: LanguageModel,
    cache: LinrecCache,
    x: Tensor,
    tokens: Tensor | None,
    mask: Tensor | None,
    needed: int | None,
    call: BlockCall | None,
    with_hidden: bool,
) -> Read:
    """Every row of ``x [B, T, d_model]`` goes on from its row of the cache.

    ``tokens [B, T]`` are the ids, None where there are only embeddings; ``mask [B, T]`` is true at real ones.
    ``needed`` columns of h are enough.
    """
    cache, new = cache.fork(), x.shape[1]
    if tokens is None:
        tokens = torch.full(x.shape[:2], UNKNOWN, dtype=torch.long, device=x.device)
    state, again, again_mask = cache.entry()
    mask_of_all = mask
    if again is not None:
        x = torch.cat([model.embed(again), x], 1)
        if mask is not None or again_mask is not None:
            mask_of_all = torch.cat([_mask(again_mask, again), _mask(mask, tokens)], 1)
    parts, layers = [], []
    at = cache.at
    for part in cache.pieces(x.shape[1], needed or 0):
        cache.keep(at, state)
        part_mask = None if mask_of_all is None else mask_of_all[:, part]
        hidden = Hidden(call, model.config.d_model) if with_hidden else None
        h, state = model.mixed(x[:, part], state, None, part_mask, hidden or call)
        at += h.shape[1]
        parts.append(h if needed is None else h[:, max(0, h.shape[1] - needed) :])
        if hidden is not None:
            layers.append([*hidden.inputs, h])
    assert state is not None
    h = _last(torch.cat(parts, 1) if len(parts) > 1 else parts[0], new)
    states = tuple(_last(torch.cat(layer, 1), new) for layer in zip(*layers, strict=True))
    return Read(h, cache.advanced(state, tokens, mask), states if with_hidden else None)


def read_documents(
    model: LanguageModel,
    cache: LinrecCache,
    x: Tensor,
    documents: Documents,
    call: BlockCall | None,
    with_hidden: bool,
) -> Read:
    """Every document of a packed batch ``x [B, T, d_model]`` by itself; the cache gets a row for each.

    Padding gets zeros. What documents go on from is in rows of the cache as well.
    """
    state, again, _ = cache.entry()
    assert again is None
    hidden = Hidden(call, model.config.d_model) if with_hidden else None
    packed = x.flatten(0, 1).index_select(0, documents.where)[None]
    h, state = model.mixed(packed, state, documents.cu_seqlens, None, hidden or call)

    def put_back(y: Tensor) -> Tensor:
        empty = y.new_zeros(x.shape[0] * x.shape[1], y.shape[2])
        return empty.index_copy(0, documents.where, y[0]).unflatten(0, x.shape[:2])

    inputs = [] if hidden is None else [*hidden.inputs, h]
    states = tuple(put_back(y) for y in inputs) if with_hidden else None
    return Read(put_back(h), LinrecCache(state), states)


def _mask(mask: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool) if mask is None else mask.bool()


def _last(x: Tensor, columns: int) -> Tensor:
    return x[:, max(0, x.shape[1] - columns) :]
