"""Independent loops of the rules with a bonus, of the general delta family and of the composite rules.

As in :mod:`tests.rules.loops`: plain token-by-token code from the equations, on single heads.
"""

from __future__ import annotations

import torch
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
    states = tuple(torch.stack(parts).unflatten(0, (batch, heads)) for parts in zip(*last, strict=True))
    o = torch.stack(rows).unflatten(0, (batch, heads, length)).transpose(1, 2) if rows else None
    return o, states


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


def rwkv6(q, k, v, g, u, scale=None, state=None):
    def step(S, q, k, v, b, h, t):
        o = (S + outer(u[h] * k, v)).T @ q
        return o, torch.exp(g[b, t, h])[:, None] * S + outer(k, v)

    return matrix_walk(step, q, k, v, 1.0 if scale is None else scale, state)


def rwkv5(q, k, v, g, u, scale=None, state=None):
    return rwkv6(q, k, v, g.expand(*v.shape[:3], -1), u, scale, state)


def hgrn2(q, v, g, scale=None, state=None):
    def step(S, q, f, v, b, h, t):
        f = torch.exp(f)
        S = f[:, None] * S + outer(1 - f, v)
        return S.T @ q, S

    return matrix_walk(step, q, g, v, default(scale, q), state)


def generalized_delta(q, k, v, a, b, g, scale=None, state=None):
    def step(S, q, k, v, n, h, t):
        S = torch.exp(g[n, t, h])[:, None] * S + outer(b[n, t, h], S.T @ a[n, t, h]) + outer(k, v)
        return S.T @ q, S

    return matrix_walk(step, q, k, v, default(scale, k), state)


def rwkv7(q, k, v, g, kappa, eta, scale=None, state=None):
    group = v.shape[2] // q.shape[2]

    def step(S, q, k, v, b, h, t):
        removal = kappa[b, t, h // group]
        transition = torch.diag(torch.exp(g[b, t, h])) - outer(eta[b, t, h] * removal, removal)
        S = transition @ S + outer(k, v)
        return S.T @ q, S

    return matrix_walk(step, q, k, v, 1.0 if scale is None else scale, state)


def comba(q, k, v, g, beta, d, D, scale=None, state=None):
    def step(S, q, k, v, b, h, t):
        p = d[h] * k
        q = q - default(scale, k) * D[h] * p
        S = torch.exp(g[b, t, h]) * S + outer(k, beta[b, t, h] * (v - S.T @ p))
        return S.T @ q, S

    return matrix_walk(step, q, k, v, default(scale, k), state)


def weight_decay_delta(q, k, v, g, beta, scale=None, state=None):
    def step(S, q, k, v, b, h, t):
        S = torch.exp(g[b, t, h]) * S + beta[b, t, h] * outer(k, v - S.T @ k)
        return S.T @ q, S

    return matrix_walk(step, q, k, v, default(scale, k), state)


def gated_delta_net_2(q, k, v, g, erase, write, scale=None, state=None):
    def step(S, q, k, v, b, h, t):
        S = torch.exp(g[b, t, h])[:, None] * S
        S = S + outer(k, write[b, t, h] * v - S.T @ (erase[b, t, h] * k))
        return S.T @ q, S

    return matrix_walk(step, q, k, v, default(scale, k), state)


def longhorn_delta(q, k, v, beta, scale=None, state=None):
    """The minimiser itself: (I + beta k k^T) S = S_prev + beta k v^T."""

    def step(S, q, k, v, b, h, t):
        strength = beta[b, t, h]
        normal = torch.eye(k.shape[0], dtype=k.dtype) + strength * outer(k, k)
        S = torch.linalg.solve(normal, S + strength * outer(k, v))
        return S.T @ q, S

    return matrix_walk(step, q, k, v, default(scale, k), state)


COMPOSITE_LOOPS = {
    f.__name__: f
    for f in (
        rwkv6,
        rwkv5,
        hgrn2,
        generalized_delta,
        rwkv7,
        comba,
        weight_decay_delta,
        gated_delta_net_2,
        longhorn_delta,
    )
}
