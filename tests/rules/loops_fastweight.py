"""Loops of test-time training: weights of every token formed, gradients by autograd; see :mod:`tests.rules.loops`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange


def gradients(loss, weights):
    """d loss / d weights, by autograd so that they depend on nothing derived by hand; differentiable."""
    return torch.func.grad(loss)(tuple(weights))


def walk(q, k, v, first, parts, state, size, step, done, scale):
    """``step(memory, place, q, k, v, index) -> (o, memory)`` for every batch row, head, token; ``done`` after ``size``.

    A memory is a list of ``parts`` lists of maps (start, [now,] momentum); states are differences from ``first``.
    """
    outputs, last, counts = [], [], []
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            count = 0 if state is None else int(state.place[b])
            memory = [[w[h] for w in first] for _ in range(parts - 1)] + [[0 * w[h] for w in first]]
            if state is not None:
                kept = [x for x in (state.start, state.now, state.momentum) if x is not None]
                memory = [
                    [m + d[b, h] for m, d in zip(ms, ds, strict=True)]
                    for ms, ds in zip(memory, kept, strict=True)
                ]
            for t in range(q.shape[1]):
                o, memory = step(memory, count, scale * q[b, t, h], k[b, t, h], v[b, t, h], (b, t, h))
                outputs.append(o)
                count += 1
                if count == size:
                    memory, count = done(memory), 0
            for ms in memory[:-1]:
                ms[:] = [m - w[h] for m, w in zip(ms, first, strict=True)]
            last.append(memory)
            counts.append(count)
    sizes = {"B": q.shape[0], "H": q.shape[2]}
    o = rearrange(outputs, "(B H T) V -> B T H V", **sizes)
    kept = [
        tuple(rearrange([m[p][i] for m in last], "(B H) ... -> B H ...", **sizes) for i in range(len(first)))
        for p in range(parts)
    ]
    return o, (*kept, rearrange(torch.tensor(counts), "(B H) -> B H", **sizes)[:, 0])


def with_ones(x):
    return torch.cat([x, torch.ones_like(x[:1])])


def ttt(q, k, v, lr, token, norm, maps, scale, state):
    first = [torch.cat([w, b[:, None]], 1) for w, b in maps]
    norm_weight, norm_bias = norm

    def net(weights, x):
        for n, w in enumerate(weights):
            x = with_ones(F.gelu(x, approximate="tanh") if n else x) @ w
        return x

    def norm_of(z, h):
        return F.layer_norm(z, z.shape, norm_weight[h], norm_bias[h], 1e-6)

    def step(memory, place, q, k, v, index):
        start, total = memory
        grads = gradients(lambda w: 0.5 * (norm_of(net(w, k), index[2]) - (v - k)).square().sum(), start)
        total = [s + lr[index] * g for s, g in zip(total, grads, strict=True)]
        now = [w - token[place] * s for w, s in zip(start, total, strict=True)]
        return q + norm_of(net(now, q), index[2]), [start, total]

    def done(memory):
        return [[w - token[-1] * s for w, s in zip(*memory, strict=True)], [0 * s for s in memory[1]]]

    return walk(q, k, v, first, 2, state, len(token), step, done, 1.0 if scale is None else scale)


def ttt_linear(q, k, v, lr, token, norm_weight, norm_bias, w, b, scale=None, state=None):
    return ttt(q, k, v, lr, token, (norm_weight, norm_bias), [(w, b)], scale, state)


def ttt_mlp(q, k, v, lr, token, norm_weight, norm_bias, w1, b1, w2, b2, scale=None, state=None):
    return ttt(q, k, v, lr, token, (norm_weight, norm_bias), [(w1, b1), (w2, b2)], scale, state)


def titans(q, k, v, lr, g, mu, w1, w2=None, mini_batch=16, scale=None, state=None):
    def net(weights, x):
        for n, w in enumerate(weights):
            x = (F.gelu(x, approximate="tanh") if n else x) @ w
        return x

    def step(memory, place, q, k, v, index):
        start, now, momentum = memory
        grads = gradients(lambda w: (net(w, k) - v).square().sum(), start)
        momentum = [torch.exp(mu[index]) * m - lr[index] * d for m, d in zip(momentum, grads, strict=True)]
        now = [torch.exp(g[index]) * w + m for w, m in zip(now, momentum, strict=True)]
        return net(now, q), [start, now, momentum]

    def done(memory):
        return [list(memory[1]), memory[1], memory[2]]

    first = [w1] if w2 is None else [w1, w2]
    return walk(q, k, v, first, 3, state, mini_batch, step, done, 1.0 if scale is None else scale)


def newton_schulz(x):
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T).T
    x = x / torch.sqrt((x * x).sum() + 1e-14)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
    return x


def large_chunk_ttt(q, k, v, lr, w1, w2, w3, mini_batch=64, muon=True, scale=None, state=None):
    def net(weights, x):
        return (F.silu(x @ weights[0]) * (x @ weights[2])) @ weights[1]

    def step(memory, place, q, k, v, index):
        start, total = memory
        grads = gradients(lambda w: -lr[index] * (v @ net(w, k)), start)
        return net(start, q), [start, [s + g for s, g in zip(total, grads, strict=True)]]

    def done(memory):
        steps = [newton_schulz(s) if muon else s for s in memory[1]]
        return [[w - s for w, s in zip(memory[0], steps, strict=True)], [0 * s for s in memory[1]]]

    return walk(q, k, v, [w1, w2, w3], 2, state, mini_batch, step, done, 1.0 if scale is None else scale)


LOOPS = {f.__name__: f for f in (ttt_linear, ttt_mlp, titans, large_chunk_ttt)}
