"""PaTH: attention whose keys are transported by every later token's H_t = I - beta_t w_t w_t^T.

.. code-block:: text

    s_ij = scale q_i^T H_i H_{i-1} ... H_{j+1} k_j + c_i - c_j ,      o_i = sum_{j <= i} softmax_j(s_ij) v_j

The cache holds every key as transported to the last token, and each block of tokens rewrites all of it. Inside
a block the products are triangular systems, with T = (I + Diag(beta) tril(W W^T, -1))^{-1} Diag(beta):

.. code-block:: text

    local scores        tril(Q K^T) - tril(Q W^T) T tril(W K^T, -1)
    q to the block's start   q - tril(Q W^T) T W
    k to the block's end     k - (T tril(W K^T, -1))^T W
    all of the block         P = I - W^T T W
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from linrec.engines.attention.cache import (
    GatedCache,
    KVCache,
    cumulative,
    empty_cache,
    forget,
    gate_dtype,
    join,
    unseen,
    without_resets,
)
from linrec.engines.attention.engine import CacheEngine, block_rows
from linrec.engines.attention.fused import masked_softmax, weighted_values
from linrec.engines.numerics.triangular import solve_unit_lower
from linrec.rule import Call, Terms

CHUNK = 64


@dataclass
class PathTerms(Terms):
    """q ``[B, T, HQ, K]``; k, w ``[B, T, H, K]``, v ``[B, T, H, V]``, beta ``[B, T, H]``, g ``[B, T, HQ]`` or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    w: Tensor
    beta: Tensor
    g: Tensor | None

    def over_time(self) -> dict[str, Tensor]:
        """The tensors with a time axis, by name."""
        named = {n: getattr(self, n) for n in ("q", "k", "v", "w", "beta", "g")}
        return {n: x for n, x in named.items() if x is not None}

    def empty(self, segments: int) -> Any:
        """A cache without tokens."""
        if self.g is None:
            return empty_cache(KVCache, (self.k, self.v), segments)
        return empty_cache(GatedCache, (self.k, self.v, self.g.to(gate_dtype(self.g))), segments)


class Block(NamedTuple):
    """One block, heads first: q ``[B, H, R, n, K]``, k and w ``[B, H, n, K]``, beta ``[B, H, n, 1]``."""

    q: Tensor
    k: Tensor
    w: Tensor
    beta: Tensor


class PathEngine(CacheEngine):
    """See the module."""

    name = "attention + triangular"

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """At least float32: the cached keys are rewritten with every token."""
        return torch.promote_types(dtype, torch.float32)

    def run_batch(
        self, terms: PathTerms, cache: Any, lengths: Tensor | None, call: Call
    ) -> tuple[Tensor, Any]:
        """Block by block; the past is the cache and the blocks before."""
        held, length = cache.k.shape[1], terms.q.shape[1]
        values = torch.cat([cache.v, terms.v], dim=1)
        gates = seen = None
        if terms.g is not None:
            g, seen = without_resets(terms.g, held)
            gates = torch.cat([cache.c, cumulative(g, cache.c, cache.length)], dim=1)
        keys, outputs = cache.k.transpose(1, 2), []
        rows = block_rows(call, length, CHUNK)
        for i in range(0, length, rows):
            block = _block(terms, slice(i, i + rows), call.scale)
            scores, keys = transported(block, keys)
            if gates is not None:
                scores = scores + _gate_bias(gates[:, : keys.shape[2]], scores)
            if seen is not None:
                hidden = unseen(seen[:, i : i + rows], keys.shape[2])
                scores = scores.masked_fill(hidden.unflatten(1, scores.shape[1:3]), -torch.inf)
            weights = masked_softmax(scores, _visible(cache.length, held, scores))
            outputs.append(weighted_values(weights, values[:, : keys.shape[2]]))
        o = torch.cat(outputs, dim=1) if outputs else values.new_zeros(*terms.q.shape[:3], values.shape[3])
        kept = [keys.transpose(1, 2), values] + ([] if gates is None else [forget(gates, seen)])
        old, fresh = ([x[:, part] for x in kept] for part in (slice(held), slice(held, None)))
        columns, have = join(old, fresh, cache.length, lengths)
        return o, type(cache)(*columns, have)


def transported(x: Block, past: Tensor) -> tuple[Tensor, Tensor]:
    """Scores ``[B, H, R, n, L + n]`` against the past and the block itself, and all keys moved to the block's end.

    ``past`` ``[B, H, L, K]`` holds the keys as they stand before the block.
    """
    strict = (x.w @ x.k.mT).tril(-1)
    systems = solve_unit_lower(-x.beta * (x.w @ x.w.mT).tril(-1), x.beta * torch.cat([x.w, strict], dim=-1))
    moved_w, moved_k = systems[:, :, None].split([x.w.shape[-1], x.k.shape[2]], dim=-1)
    reach = (x.q @ x.w.mT[:, :, None]).tril()
    local = (x.q @ x.k.mT[:, :, None]).tril() - reach @ moved_k
    at_start = x.q - reach @ moved_w
    scores = torch.cat([at_start @ past.mT[:, :, None], local], dim=-1)
    past = past - (past @ moved_w[:, :, 0].mT) @ x.w
    return scores, torch.cat([past, x.k - moved_k[:, :, 0].mT @ x.w], dim=2)


def _block(terms: PathTerms, now: slice, scale: float) -> Block:
    q = rearrange(terms.q[:, now], "B n (H R) K -> B H R n K", H=terms.k.shape[2]) * scale
    k, w = (x[:, now].transpose(1, 2) for x in (terms.k, terms.w))
    return Block(q, k, w, terms.beta[:, now].transpose(1, 2)[..., None])


def _visible(length: Tensor, held: int, scores: Tensor) -> Tensor:
    """Slots a query may see ``[B, 1, 1, n, S]``: real ones of the cache, and this call's up to its own."""
    n, size = scores.shape[-2:]
    slots = torch.arange(size, device=scores.device)
    real = (slots >= held) | (slots < length[:, None])
    own = slots <= size - n + torch.arange(n, device=scores.device)[:, None]
    return (real[:, None] & own)[:, None, None]


def _gate_bias(gates: Tensor, scores: Tensor) -> Tensor:
    """c_i - c_j in the layout of the scores ``[B, H, R, n, S]``, for the last n of S tokens."""
    c = gates.transpose(1, 2).unflatten(1, scores.shape[1:3])
    bias = c[..., -scores.shape[-2] :, None] - c[..., None, :]
    return bias.to(scores.dtype)


PATH = PathEngine()
