"""Walks through heads and tokens, for loops whose state is a matrix or several; see :mod:`tests.rules.loops`."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def walk(token, batch, heads, length, starts):
    """``token(b, h, t, state) -> (o, state)`` over every head; ``starts(b, h)`` is the head's entry state (a tuple).

    Returns (o ``[B, T, HV, .]`` or None without tokens, the tuple of states ``[B, HV, ...]``).
    """
    rows, last = [], []
    for b in range(batch):
        for h in range(heads):
            state = starts(b, h)
            for t in range(length):
                o, state = token(b, h, t, state)
                rows.append(o)
            last.append(state)
    states = (rearrange(list(parts), "(B HV) ... -> B HV ...", B=batch) for parts in zip(*last, strict=True))
    o = rearrange(rows, "(B HV T) ... -> B T HV ...", B=batch, HV=heads) if rows else None
    return o, tuple(states)


def matrix_walk(step, q, k, v, scale, state):
    """The common case: one matrix a head; ``step(S, q_t, k_t, v_t, b, h, t) -> (o, S)``."""
    group = v.shape[2] // q.shape[2]
    width = k.shape[3]

    def token(b, h, t, held):
        o, S = step(
            held[0],
            scale * q[b, t, h // group],
            k[b, t, h // (v.shape[2] // k.shape[2])],
            v[b, t, h],
            b,
            h,
            t,
        )
        return o, (S,)

    def starts(b, h):
        return (v.new_zeros(width, v.shape[3]) if state is None else state[b, h],)

    o, (last,) = walk(token, v.shape[0], v.shape[2], v.shape[1], starts)
    return o, last


def default(scale, k):
    return k.shape[-1] ** -0.5 if scale is None else scale


def outer(x: Tensor, y: Tensor) -> Tensor:
    return x[:, None] * y[None, :]


def zeros_or(state, like, *shapes):
    if state is not None:
        return lambda b, h: tuple(s[b, h] for s in state)
    return lambda b, h: tuple(like.new_zeros(s) for s in shapes)
