"""Softmax attention over a key-value cache, through torch's scaled_dot_product_attention.

.. code-block:: text

    o_i = sum_{j <= i} softmax_j(scale q_i . k_j) v_j

The state is the cache itself: it grows with the tokens, and rows may hold different numbers of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from linrec.errors import DtypeError, ShapeError
from linrec.packing import by_segment
from linrec.rule import Call, Terms, check_backend

CHUNK = 256


class KVCache(NamedTuple):
    """k ``[B, L, H, K]``, v ``[B, L, H, V]``; row b holds ``length[b]`` <= L tokens, the rest is padding."""

    k: Tensor
    v: Tensor
    length: Tensor


@dataclass(frozen=True)
class AttentionTerms(Terms):
    """q ``[B, T, HQ, K]``, k ``[B, T, H, K]``, v ``[B, T, H, V]``; query head h reads key head h // (HQ // H)."""

    q: Tensor
    k: Tensor
    v: Tensor

    def over_time(self) -> dict[str, Tensor]:
        """The tensors with a time axis, by name."""
        return {"q": self.q, "k": self.k, "v": self.v}


class AttentionEngine:
    """See :mod:`linrec.engines.attention`."""

    name = "attention"

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The inputs' own: the fused kernels accumulate in float32 inside, and the cache stays small."""
        return dtype

    def init_state(self, terms: AttentionTerms, segments: int) -> KVCache:
        """An empty cache for every row."""
        return KVCache(
            terms.k.new_zeros(segments, 0, *terms.k.shape[2:]),
            terms.v.new_zeros(segments, 0, *terms.v.shape[2:]),
            torch.zeros(segments, dtype=torch.int64, device=terms.k.device),
        )

    def auto_backend(self, device: str) -> str:
        """What ``backend="auto"`` runs on this kind of device."""
        return "torch (scaled_dot_product_attention picks its own fused kernel)"

    def run(
        self, terms: AttentionTerms, state: KVCache | None, call: Call, who: str
    ) -> tuple[Tensor, KVCache]:
        """Output ``[B, T, HQ, V]`` and the cache with this call's tokens appended."""
        check_backend(
            call, who, "softmax attention runs through torch's own fused kernels; use backend='auto'"
        )
        empty = self.init_state(terms, terms.segments(call))
        cache = empty if state is None else _checked(state, empty, who)
        if call.bounds is None:
            return _run_batch(terms, cache, None, call)
        return by_segment(
            lambda tensors, rows, lengths: _run_batch(terms.with_tensors(tensors), rows, lengths, call),
            terms.over_time(),
            cache,
            call.bounds,
        )


def _run_batch(
    terms: AttentionTerms, cache: KVCache, lengths: Tensor | None, call: Call
) -> tuple[Tensor, KVCache]:
    start = cache.length
    cache = _append(cache, terms.k, terms.v, lengths)
    length = terms.q.shape[1]
    rows = {"parallel": length, "chunkwise": call.chunk_size or CHUNK}.get(call.form, 1)
    outputs = [
        _attend(terms.q[:, i : i + rows], cache, start, i, call.scale) for i in range(0, length, max(rows, 1))
    ]
    return torch.cat(outputs, dim=1) if outputs else _no_tokens(terms), cache


def _no_tokens(terms: AttentionTerms) -> Tensor:
    return terms.v.new_zeros(*terms.q.shape[:3], terms.v.shape[3])


def _append(cache: KVCache, k: Tensor, v: Tensor, lengths: Tensor | None) -> KVCache:
    """The cache with new tokens behind each row's own; all T of them are real unless ``lengths`` says so."""
    batch, new = k.shape[:2]
    after = cache.length + (new if lengths is None else lengths)
    old = cache.k.shape[1]
    if old == 0 or (lengths is None and bool((cache.length == old).all())):
        return KVCache(torch.cat([cache.k, k], dim=1), torch.cat([cache.v, v], dim=1), after)
    # Rows of different lengths: a new slot takes the row's next token, all other slots keep what they held.
    slot = torch.arange(old + new, device=k.device) - cache.length[:, None]
    fresh = (slot >= 0) & (slot < new)
    take = torch.where(fresh, old + slot.clamp(0, max(new - 1, 0)), torch.arange(old + new, device=k.device))
    take = take.clamp(max=old + new - 1)
    size = int(after.max()) if batch else 0
    row = torch.arange(batch, device=k.device)[:, None]

    def merged(old: Tensor, fresh: Tensor) -> Tensor:
        return torch.cat([old, fresh], dim=1)[row, take[:, :size]]

    return KVCache(merged(cache.k, k), merged(cache.v, v), after)


def _attend(q: Tensor, cache: KVCache, start: Tensor, offset: int, scale: float) -> Tensor:
    """Queries ``offset .. offset + n`` of this call against every key up to their own position."""
    n = q.shape[1]
    fresh = cache.k.shape[1] >= offset + n and not start.any()
    if fresh:  # nothing came before this call: key positions are token numbers
        seen = offset + n
        keys, values = cache.k[:, :seen], cache.v[:, :seen]
        mask = _causal(n, seen, q.device) if offset and n > 1 else None
    else:
        keys, values = cache.k, cache.v
        position = start[:, None] + offset + torch.arange(n, device=q.device)
        mask = (torch.arange(keys.shape[1], device=q.device) <= position[..., None])[:, None]
        if n == 1 and bool(mask.all()):
            mask = None
    return sdpa(q, keys, values, mask=mask, causal=fresh and offset == 0 and n > 1, scale=scale)


def _causal(rows: int, columns: int, device: torch.device) -> Tensor:
    return torch.ones(rows, columns, dtype=torch.bool, device=device).tril(columns - rows)


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """torch's attention in the time-first layout, with grouped heads.

    The fused kernels have no forward-mode derivative; under it the composite path is taken.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))

    def call() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)

    if any(forward_ad.unpack_dual(x).tangent is not None for x in (q, k, v)):
        with sdpa_kernel(SDPBackend.MATH):
            return call().transpose(1, 2)
    return call().transpose(1, 2)


def _checked(state: KVCache, empty: KVCache, who: str) -> KVCache:
    if not isinstance(state, KVCache):
        raise DtypeError(f"{who}: state must be a KVCache(k, v, length), got {type(state).__name__}")
    for name, got, want in zip(KVCache._fields, state, empty, strict=True):
        same = got.shape[:1] + got.shape[2:] == want.shape[:1] + want.shape[2:]
        if got.dim() != want.dim() or not same:
            shown = [*want.shape[:1], "L", *want.shape[2:]] if want.dim() > 1 else list(want.shape)
            raise ShapeError(f"{who}: state.{name} must be {shown}, got {list(got.shape)}")
        if got.dtype != want.dtype:
            raise DtypeError(f"{who}: state.{name} must be {want.dtype}, got {got.dtype}")
    return state


ATTENTION = AttentionEngine()
