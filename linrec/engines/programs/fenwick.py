"""Log-linear attention: a matrix recurrence whose past is kept in O(log T) states, one for each distance level.

Token j is at level bit_length(t xor j) for the query t (t = 0, 1, ...): 0 for itself, l for the bucket of 2^(l - 1)
tokens that a Fenwick tree would read. The read-out weighs every level by its own factor. As t grows, buckets only
merge into higher levels, so all tokens of a bucket always share a level, and any one of them stands for it. From the
last level on nothing is told apart.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

from linrec.engines.matrix import MatrixTerms
from linrec.engines.numerics.checks import readable, transformed
from linrec.engines.programs.program import Run


class LevelState(NamedTuple):
    """memory ``[B, L, HV, K, V]``, one state a level; seen ``[B]``, tokens read so far."""

    memory: Tensor
    seen: Tensor


class _Entry(NamedTuple):
    """What a chunk meets, as its first token sees it: memory ``[B, n, HV, K, V]`` of the levels place ``[n]``, seen
    ``[B]``; left: tokens to come."""

    memory: Tensor
    place: Tensor
    seen: Tensor
    left: int


def fenwick(run: Run, terms: MatrixTerms, weights: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
    """o_t = sum_l weights_tl (S_t^(l))^T q_t for any matrix recurrence; weights ``[B, T, HV, L]``."""

    def step(x: dict[str, Tensor], met: _Entry) -> tuple[Tensor, _Entry]:
        factors = x.pop("weights")
        return _one_chunk(run, replace(terms, **x), factors, met)  # type: ignore[arg-type]

    entry = _entry(state, weights.shape[1])
    o, last = run.chunks(step, terms.over_time() | {"weights": weights}, entry)
    return o, LevelState(last.memory, last.seen)


def empty_levels(v: Tensor, levels: int, width: int, rows: int) -> LevelState:
    """No tokens yet; values like v ``[B, T, HV, V]``."""
    memory = v.new_zeros(rows, levels, v.shape[2], width, v.shape[3])
    return LevelState(memory, torch.zeros(rows, dtype=torch.int64, device=v.device))


def level(t: Tensor, j: Tensor, levels: int) -> Tensor:
    """bit_length(t xor j), at most the last level; t and j ``[...]``, broadcast."""
    wide = torch.float32 if t.device.type == "mps" else torch.float64
    return torch.frexp((t ^ j).to(wide)).exponent.long().clamp(max=levels - 1)


def _entry(state: LevelState, length: int) -> _Entry:
    """The state's levels, as its last token sees them, merged to those that the next token sees."""
    levels, reader = state.memory.shape[1], state.seen[:, None]
    place = torch.arange(levels, device=reader.device)
    merge = _as_seen(reader, _token_of(reader - 1, place), place, levels, place, state.memory.dtype)
    merge = merge * (_in_use(reader - 1, place, levels) | (place == 0))[..., None].to(merge.dtype)
    kept = _place(reader, levels)
    memory = einsum(merge[..., kept], state.memory, "B L M, B L HV K V -> B M HV K V")
    return _Entry(memory, kept, state.seen, length)


def _one_chunk(run: Run, terms: MatrixTerms, weights: Tensor, met: _Entry) -> tuple[Tensor, _Entry]:
    """One engine call gives the chunk as linear maps of its values and of the state before it.

    What is handed on are the levels that the next token sees, which are few: all that are smaller than a chunk have
    merged where chunks begin at multiples of their length. After the last chunk: as the last token sees them, all.
    """
    length, levels = weights.shape[1], weights.shape[3]
    at = met.seen[:, None] + torch.arange(length, device=weights.device)
    of_level = _token_of(at[:, :1], met.place)
    maps = _linear_maps(run, terms)
    now = level(at[:, :, None], at[:, None, :], levels)
    then = level(at[:, :, None], of_level[:, None, :], levels)
    then = torch.where(met.place == levels - 1, levels - 1, then)
    o = einsum(maps.read_values * _pick(weights, now), terms.v, "B I HV J, B J HV V -> B I HV V")
    read = maps.read_state, _pick(weights, then), met.memory
    o = o + einsum(*read, "B I HV K, B I HV L, B L HV K V -> B I HV V")
    ends = length == met.left
    reader = at[:, -1:] if ends else at[:, -1:] + 1
    place = torch.arange(levels, device=at.device) if ends else _place(reader, levels)
    own = F.one_hot(level(reader, at, levels), levels).to(o.dtype)[..., place]
    merge = _as_seen(reader, of_level, met.place, levels, place, o.dtype)
    memory = einsum(maps.write_values, own, terms.v, "B HV K J, B J L, B J HV V -> B L HV K V")
    carried = maps.write_state[:, None] @ met.memory
    memory = memory + einsum(merge, carried, "B L M, B L HV K V -> B M HV K V")
    return o, _Entry(memory, place, met.seen + length, met.left - length)


def _token_of(reader: Tensor, place: Tensor) -> Tensor:
    """A token of each bucket ``[B, n]`` that ``reader`` ``[B, 1]`` sees at the levels ``place``."""
    return (reader >> place) << place


def _in_use(reader: Tensor, place: Tensor, levels: int) -> Tensor:
    """At which levels ``[B, n]`` the token ``reader`` ``[B, 1]`` sees others."""
    bits = reader >> (place - 1).clamp(min=0)
    return torch.where(place == levels - 1, bits != 0, (bits % 2 == 1) & (place > 0))


def _place(reader: Tensor, levels: int) -> Tensor:
    """Those that are in use in some row; where values cannot be looked at, all."""
    place = torch.arange(levels, device=reader.device)
    if reader.is_cpu and readable(reader) and not transformed(reader):
        place = _in_use(reader, place, levels).any(0).nonzero()[:, 0]
    return place


def _as_seen(
    reader: Tensor, tokens: Tensor, place: Tensor, levels: int, kept: Tensor, dtype: torch.dtype
) -> Tensor:
    """One where ``reader`` sees the bucket of the ``tokens``, so far at level ``place``, at the level ``kept``."""
    then = torch.where(place == levels - 1, levels - 1, level(reader, tokens, levels))
    return F.one_hot(then, levels).to(dtype)[..., kept]


class _Maps(NamedTuple):
    """A chunk as linear maps: the output from values ``[B, C, HV, C]`` and from a state ``[B, C, HV, K]``, the exit
    state from values ``[B, HV, K, C]`` and from a state ``[B, HV, K, K]``."""

    read_values: Tensor
    read_state: Tensor
    write_values: Tensor
    write_state: Tensor


def _linear_maps(run: Run, terms: MatrixTerms) -> _Maps:
    """Unit vectors as values, and beside them as entry state."""
    (batch, length, heads, _), width = terms.v.shape, terms.k.shape[3]
    units = torch.eye(length, length + width, dtype=terms.v.dtype, device=terms.v.device)
    rows = torch.eye(width, dtype=units.dtype, device=units.device)
    entry = F.pad(rows, (length, 0)).expand(batch, heads, -1, -1)
    o, state = run.matrix(replace(terms, v=units[:, None].expand(batch, -1, heads, -1)), entry)
    return _Maps(o[..., :length], o[..., length:], state[..., :length], state[..., length:])


def _pick(weights: Tensor, index: Tensor) -> Tensor:
    """weights ``[B, T, HV, L]`` at ``index [B, T, n]`` -> ``[B, T, HV, n]``."""
    return weights.gather(-1, index[:, :, None].expand(-1, -1, weights.shape[2], -1))
