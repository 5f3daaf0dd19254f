"""Loops of the general delta family: one or more predictions corrected a token; see :mod:`tests.rules.loops`."""

from __future__ import annotations

import torch
from einops import rearrange

from tests.rules.loops_walk import default, matrix_walk, outer, walk, zeros_or


def generalized_delta(q, k, v, a, b, g, scale=None, state=None):
    def step(S, q, k, v, n, h, t):
        S = torch.exp(g[n, t, h])[..., None] * S + outer(b[n, t, h], S.T @ a[n, t, h]) + outer(k, v)
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


def delta_product(q, k, v, g, beta, scale=None, state=None):
    scale, group = default(scale, k), v.shape[2] // k.shape[2]

    def token(b, h, t, held):
        S = torch.exp(g[b, t, h]) * held[0]
        for r in range(k.shape[3]):
            kr = k[b, t, h // group, r]
            S = S + beta[b, t, h, r] * outer(kr, v[b, t, h, r] - S.T @ kr)
        return S.T @ (scale * q[b, t, h // group]), (S,)

    starts = zeros_or(None if state is None else (state,), v, (k.shape[4], v.shape[4]))
    o, (last,) = walk(token, v.shape[0], v.shape[2], v.shape[1], starts)
    return o, last


def momentum_delta(q, k, v, g, h, eta, beta, p, scale=None, state=None):
    scale, group = default(scale, k), v.shape[2] // k.shape[2]

    def token(b, n, t, held):
        S, M = held
        kt, at = k[b, t, n // group], (b, t, n)
        error = v[at] - S.T @ p[b, t, n // group]
        M = torch.exp(h[at]) * M + eta[at] * outer(kt, error)
        S = torch.exp(g[at]) * S + beta[at] * M
        return S.T @ (scale * q[b, t, n // group]), (S, M)

    shape = (k.shape[3], v.shape[3])
    return walk(token, v.shape[0], v.shape[2], v.shape[1], zeros_or(state, v, shape, shape))


def block_delta(q, k, v, g, eta, scale=None, state=None):
    scale, group = default(scale, k), v.shape[2] // k.shape[2]

    def token(b, h, t, held):
        before = held[0]
        S = torch.exp(g[b, t, h]) * before
        for r in range(k.shape[3]):
            kr = k[b, t, h // group, r]
            S = S + eta[b, t, h, r] * outer(kr, v[b, t, h, r] - before.T @ kr)
        return S.T @ (scale * q[b, t, h // group]), (S,)

    starts = zeros_or(None if state is None else (state,), v, (k.shape[4], v.shape[4]))
    o, (last,) = walk(token, v.shape[0], v.shape[2], v.shape[1], starts)
    return o, last


def omega(q, k, v, g, eta, scale=None, state=None):
    """Gathers each token's window, then the block rule; a window that reaches before the start holds zeros."""
    window = eta.shape[3]
    before = window - 1
    zeros = [x.new_zeros(x.shape[0], before, *x.shape[2:]) for x in (k, v)]
    old_k, old_v = zeros if state is None else (state.k, state.v)
    keys, values = torch.cat([old_k, k], 1), torch.cat([old_v, v], 1)

    def gathered(x):
        windows = [x[:, t : t + window].flip(1) for t in range(v.shape[1])]
        return rearrange(windows, "T B R H K -> B T H R K")

    memory = None if state is None else state.memory
    o, last = block_delta(q, gathered(keys), gathered(values), g, eta, default(scale, k), memory)
    return o, (last, keys[:, v.shape[1] :], values[:, v.shape[1] :])


LOOPS = {
    f.__name__: f
    for f in (
        generalized_delta,
        rwkv7,
        comba,
        weight_decay_delta,
        gated_delta_net_2,
        longhorn_delta,
        delta_product,
        momentum_delta,
        block_delta,
        omega,
    )
}
