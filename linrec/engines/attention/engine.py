"""Attention over a cache: plain, with a log-decay, with constant slopes, in a window, or with other weights.

The tokens of a call join the cache first; then blocks of queries attend. Terms of another kind (latent, shared
or factored keys and values) say what they cache and how keys and values come out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linrec.engines.attention.cache import (
    GatedCache,
    KVCache,
    check_cache,
    cumulative,
    empty_cache,
    forget,
    gate_dtype,
    held_tokens,
    is_even,
    join,
    keep_last,
    unseen,
    without_resets,
)
from linrec.engines.attention.fused import sdpa
from linrec.packing import by_segment
from linrec.rule import Call, Terms, check_backend

CHUNK = 256
# (q, k, v, distance, scale) -> o: what takes the place of softmax; distance [1 or B, n, S] is i - j.
Weighing = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


class Operands(NamedTuple):
    """What is attended with: q of this call, k and v of every cached token, and what maps the output back."""

    q: Tensor
    k: Tensor
    v: Tensor
    finish: Callable[[Tensor], Tensor] | None = None


@dataclass
class Attending(Terms):
    """What all attention has: q ``[B, T, HQ, K]``, and how the scores are biased and weighed.

    g ``[B, T, HQ]`` log-decay (bias c_i - c_j), slope ``[HQ]`` (bias slope (i - j)), window: how many tokens a
    query sees, itself included; weigh: what replaces softmax.
    """

    q: Tensor
    g: Tensor | None = field(default=None, kw_only=True)
    slope: Tensor | None = field(default=None, kw_only=True)
    window: int | None = field(default=None, kw_only=True)
    weigh: Weighing | None = field(default=None, kw_only=True)

    def columns(self) -> dict[str, Tensor]:
        """What is cached of each token, ``[B, T, ...]``, by field name."""
        raise NotImplementedError

    def empty(self, segments: int) -> Any:
        """A cache without tokens."""
        raise NotImplementedError

    def fresh(self, cache: Any, held: Tensor) -> tuple[Tensor, ...]:
        """The cache's columns for the tokens of this call; rows hold ``held [B]`` tokens."""
        return tuple(self.columns().values())

    def operands(self, columns: list[Tensor], one_by_one: bool) -> Operands:
        """Queries, keys and values from the cache's columns; ``one_by_one``: for decoding."""
        raise NotImplementedError

    def over_time(self) -> dict[str, Tensor]:
        """The tensors with a time axis, by name."""
        gate = {} if self.g is None else {"g": self.g}
        return {"q": self.q, **self.columns(), **gate}


@dataclass
class AttentionTerms(Attending):
    """k ``[B, T, H, K]``, v ``[B, T, H, V]``; query head h reads key head h // (HQ // H)."""

    k: Tensor
    v: Tensor

    def columns(self) -> dict[str, Tensor]:
        """k and v."""
        return {"k": self.k, "v": self.v}

    def empty(self, segments: int) -> Any:
        """A KVCache, or a GatedCache where there is a log-decay."""
        if self.g is None:
            return empty_cache(KVCache, (self.k, self.v), segments)
        return empty_cache(GatedCache, (self.k, self.v, self.g.to(gate_dtype(self.g))), segments)

    def fresh(self, cache: Any, held: Tensor) -> tuple[Tensor, ...]:
        """k, v and the cumulative log-decay."""
        return (self.k, self.v) if self.g is None else (self.k, self.v, cumulative(self.g, cache.c, held))

    def operands(self, columns: list[Tensor], one_by_one: bool) -> Operands:
        """The cache holds keys and values themselves."""
        return Operands(self.q, columns[0], columns[1])


class CacheEngine:
    """What the engines over a cache share: the empty cache, its check, and packed sequences."""

    name = "attention"

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The inputs' own: the fused kernels accumulate in float32 inside, and the cache stays small."""
        return dtype

    def init_state(self, terms: Any, segments: int) -> Any:
        """An empty cache for every row."""
        return terms.empty(segments)

    def auto_backend(self, device: str) -> str:
        """What ``backend="auto"`` runs on this kind of device."""
        return "torch (scaled_dot_product_attention picks its own fused kernel)"

    def run(self, terms: Any, state: Any, call: Call, who: str) -> tuple[Tensor, Any]:
        """Output ``[B, T, HQ, V]`` and the cache with this call's tokens appended."""
        check_backend(
            call, who, "softmax attention runs through torch's own fused kernels; use backend='auto'"
        )
        empty = self.init_state(terms, terms.segments(call))
        cache = empty if state is None else check_cache(state, empty, who)
        if call.bounds is None:
            return self.run_batch(terms, cache, None, call)
        return by_segment(
            lambda tensors, rows, lengths: self.run_batch(terms.with_tensors(tensors), rows, lengths, call),
            terms.over_time(),
            cache,
            call.bounds,
        )

    def run_batch(self, terms: Any, cache: Any, lengths: Tensor | None, call: Call) -> tuple[Tensor, Any]:
        """One batch; ``lengths [B]`` says how many tokens of each row are real, None that all are."""
        raise NotImplementedError


class AttentionEngine(CacheEngine):
    """See the module."""

    def run_batch(
        self, terms: Attending, cache: Any, lengths: Tensor | None, call: Call
    ) -> tuple[Tensor, Any]:
        """Append, attend block by block, drop what the window no longer needs."""
        held = held_tokens(cache.length, terms.window)
        seen = None
        if terms.g is not None:
            g, seen = without_resets(terms.g, held)
            terms = terms if seen is None else replace(terms, g=g)
        columns, have = join(cache[:-1], terms.fresh(cache, held), held, lengths)
        one_by_one = call.form in ("recurrent", "step")
        x = terms.operands(columns, one_by_one)
        if is_even(held, cache[0].shape[1]):
            held = cache[0].shape[1]
        gates = columns[2] if terms.g is not None else None
        length = x.q.shape[1]
        rows = block_rows(call, length, CHUNK)
        outputs = [
            _attend(terms, x, gates, seen, held, i, min(i + rows, length), call.scale)
            for i in range(0, length, rows)
        ]
        o = torch.cat(outputs, dim=1) if outputs else x.v.new_zeros(*x.q.shape[:3], x.v.shape[3])
        grown = cache.length + (length if lengths is None else lengths)
        if gates is not None:
            columns[2] = forget(gates, seen)
        return (o if x.finish is None else x.finish(o)), type(cache)(
            *keep_last(columns, have, terms.window), grown
        )


def block_rows(call: Call, length: int, chunk: int) -> int:
    """Queries at a time: all, a chunk, or one."""
    return max({"parallel": length, "chunkwise": call.chunk_size or chunk}.get(call.form, 1), 1)


def _attend(
    terms: Attending,
    x: Operands,
    gates: Tensor | None,
    seen: Tensor | None,
    held: Tensor | int,
    i: int,
    j: int,
    scale: float,
) -> Tensor:
    """Queries i .. j of this call against the keys up to their own position, and from the slots ``seen`` on.

    Slot s of a row is its token number s; query t is token ``held + t``.
    """
    q, n = x.q[:, i:j], j - i
    first, last = 0, x.k.shape[1]
    if isinstance(held, int):
        first = max(held + i - terms.window + 1, 0) if terms.window else 0
        last = held + j
    k, v = x.k[:, first:last], x.v[:, first:last]
    plain = terms.g is None and terms.slope is None and terms.weigh is None
    narrow = terms.window is not None and last - first > terms.window
    if plain and isinstance(held, int) and not narrow and (n == 1 or first + n == last):
        return sdpa(q, k, v, causal=n > 1, scale=scale)
    distance = _distance(held, i, j, first, last, x.k.device)
    if terms.weigh is not None:
        return terms.weigh(q, k, v, distance, scale)
    keep = distance >= 0
    if terms.window is not None:
        keep = keep & (distance < terms.window)
    if plain:
        return sdpa(q, k, v, mask=keep[:, None], scale=scale)
    if gates is not None:
        bias = _gate_bias(gates, held, i, j, first, last)
        if seen is not None:
            bias = bias.masked_fill(unseen(seen[:, i:j], last - first, first), -torch.inf)
    else:
        assert terms.slope is not None
        steepest = torch.finfo(
            terms.slope.dtype
        ).min  # minus infinity for every purpose, but for its own token
        bias = terms.slope.clamp(min=steepest)[:, None, None] * distance[:, None]
    bias = bias.masked_fill(~keep[:, None], -torch.inf)
    return sdpa(q, k, v, mask=bias.to(torch.promote_types(q.dtype, torch.float32)), scale=scale)


def _distance(held: Tensor | int, i: int, j: int, first: int, last: int, device: torch.device) -> Tensor:
    """Tokens between query and key ``[1 or B, j - i, last - first]``; negative for keys to come."""
    start = held[:, None, None] if isinstance(held, Tensor) else held
    position = start + torch.arange(i, j, device=device)[None, :, None]
    return position - torch.arange(first, last, device=device)


def _gate_bias(gates: Tensor, held: Tensor | int, i: int, j: int, first: int, last: int) -> Tensor:
    """c_i - c_j ``[B, HQ, n, S]``, from the cache's float64 sums: only their differences are rounded."""
    if isinstance(held, int):
        own = gates[:, held + i : held + j]
    else:
        slots = (held[:, None] + torch.arange(i, j, device=held.device)).clamp(max=gates.shape[1] - 1)
        own = gates[torch.arange(gates.shape[0], device=held.device)[:, None], slots]
    return own.transpose(1, 2)[..., None] - gates[:, first:last].transpose(1, 2)[:, :, None]


ATTENTION = AttentionEngine()
