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
from torch import Tensor

from linrec.engines.matrix import MatrixTerms
from linrec.engines.program import Run


class LevelState(NamedTuple):
    """memory ``[B, L, HV, K, V]``, one state a level; seen ``[B]``, tokens read so far."""

    memory: Tensor
    seen: Tensor


def fenwick(run: Run, terms: MatrixTerms, weights: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
    """o_t = sum_l weights_tl (S_t^(l))^T q_t for any matrix recurrence; weights ``[B, T, HV, L]``."""

    def step(x: dict[str, Tensor], held: LevelState) -> tuple[Tensor, LevelState]:
        factors = x.pop("weights")
        return _one_chunk(run, replace(terms, **x), factors, held)  # type: ignore[arg-type]

    return run.chunks(step, terms.over_time() | {"weights": weights}, state)


def empty_levels(v: Tensor, levels: int, width: int, rows: int) -> LevelState:
    """No tokens yet."""
    memory = v.new_zeros(rows, levels, v.shape[2], width, v.shape[3])
    return LevelState(memory, torch.zeros(rows, dtype=torch.int64, device=v.device))


def level(t: Tensor, j: Tensor, levels: int) -> Tensor:
    """bit_length(t xor j), at most the last level."""
    wide = torch.float32 if t.device.type == "mps" else torch.float64
    return torch.frexp((t ^ j).to(wide)).exponent.long().clamp(max=levels - 1)


def _one_chunk(run: Run, terms: MatrixTerms, weights: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
    """One engine call gives the attention matrix (values: unit vectors) and what becomes of every stored level."""
    length, levels = weights.shape[1], weights.shape[3]
    at = state.seen[:, None] + torch.arange(length, device=weights.device)
    place = torch.arange(levels, device=weights.device)
    last = at[:, :1] - 1
    of_level = (last >> place) << place  # a token of each stored bucket
    held = state.memory * _in_use(last, place)[..., None, None, None].to(state.memory.dtype)
    maps, stored, columns, carried = _linear_maps(run, terms, held)
    now = level(at[:, :, None], at[:, None, :], levels)
    then = level(at[:, :, None], of_level[:, None, :], levels)
    then[..., -1] = levels - 1
    o = torch.einsum("bihj,bjhv->bihv", maps * _pick(weights, now), terms.v)
    o = o + (_pick(weights, then)[..., None] * stored).sum(-2)
    dtype = o.dtype
    own = F.one_hot(now[:, -1], levels).to(dtype)
    merge = F.one_hot(then[:, -1], levels).to(dtype)
    memory = torch.einsum("bhkj,bjl,bjhv->blhkv", columns, own, terms.v)
    memory = memory + torch.einsum("blm,blhkv->bmhkv", merge, carried)
    return o, LevelState(memory, state.seen + length)


def _in_use(last: Tensor, place: Tensor) -> Tensor:
    """Which levels hold a bucket after the token ``last``; the others are zero, and stay out of derivatives."""
    bits = last >> (place - 1).clamp(min=0)
    top = place == place.shape[0] - 1
    return torch.where(top, bits != 0, bits % 2 == 1) | (place == 0)


def _linear_maps(run: Run, terms: MatrixTerms, memory: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The chunk as linear maps of its values and of the stored levels.

    Output from values ``[B, C, HV, C]`` and from levels ``[B, C, HV, L, V]``, exit state from values
    ``[B, HV, K, C]`` and from levels ``[B, L, HV, K, V]``.
    """
    batch, length, heads, width = terms.v.shape
    levels = memory.shape[1]
    units = torch.eye(length, dtype=terms.v.dtype, device=terms.v.device)[:, None].expand(
        batch, -1, heads, -1
    )
    stacked = memory.permute(0, 2, 3, 1, 4).flatten(3)
    v = F.pad(units, (0, levels * width))
    o, state = run.matrix(replace(terms, v=v), F.pad(stacked, (length, 0)))
    carried = state[..., length:].unflatten(-1, (levels, width)).permute(0, 3, 1, 2, 4)
    return o[..., :length], o[..., length:].unflatten(-1, (levels, width)), state[..., :length], carried


def _pick(weights: Tensor, index: Tensor) -> Tensor:
    """weights ``[B, T, HV, L]`` at ``index [B, T, n]`` -> ``[B, T, HV, n]``."""
    return weights.gather(-1, index[:, :, None].expand(-1, -1, weights.shape[2], -1))
