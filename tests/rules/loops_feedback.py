"""Loops of the softmax family and of short convolutions; see :mod:`tests.rules.loops`."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor


def joined(state, *fresh):
    """The columns of a state without its lengths, each with this call's tokens behind."""
    if state is None:
        return list(fresh), 0
    return [torch.cat([old, new], 1) for old, new in zip(state[:-1], fresh, strict=True)], state[0].shape[1]


def with_length(columns):
    return (*columns, torch.full((columns[0].shape[0],), columns[0].shape[1]))


def per_query(q, heads, before, row):
    """``row(b, i, h, q_i)`` -> o for every batch row, token number i and query head; h is the key head's number."""
    group = q.shape[2] // heads
    rows = [
        row(b, before + t, h // group, h, q[b, t, h])
        for b in range(q.shape[0])
        for t in range(q.shape[1])
        for h in range(q.shape[2])
    ]
    return rearrange(rows, "(B T HQ) V -> B T HQ V", B=q.shape[0], T=q.shape[1])


def default(scale, width):
    return width**-0.5 if scale is None else scale


def alibi(q, k, v, g, scale=None, state=None):
    scale = default(scale, q.shape[-1])
    (k, v), before = joined(state, k, v)

    # g added up n times, which is zero for none also where g is -inf
    times = [torch.cat([0 * v[0, :1, 0, 0], slope.expand(k.shape[1])]).cumsum(0) for slope in g]

    def row(b, i, h, hq, q):
        s = scale * (k[b, : i + 1, h] @ q) + times[hq][: i + 1].flip(0)
        return torch.softmax(s, 0) @ v[b, : i + 1, h]

    return per_query(q, k.shape[2], before, row), with_length([k, v])


def fading(held, g):
    """For each new token the log-decay since every token up to it, summed and never subtracted; and the cache's c.

    ``held`` is c of the tokens before. In the cache a token that is forgotten for good is far above all others.
    """
    since, c, rows = [held[-1] - x for x in held], list(held), []
    for step in g:
        reset = step <= -1e4
        last = (c[-1] if c else 0) + torch.where(reset, 0, step)
        c = [torch.where(reset, 1e30, x) for x in c] + [last]
        since = [x + step for x in since] + [torch.zeros_like(step)]
        rows.append(torch.stack(since))
    return rows, c


def forgetting_attention(q, k, v, g, scale=None, state=None):
    scale = default(scale, q.shape[-1])
    held = [] if state is None else list(state.c.unbind(1))
    faded, c = fading(held, list(g.unbind(1)))
    (k, v, _), before = joined(state, k, v, g)

    def row(b, i, h, hq, q):
        s = scale * (k[b, : i + 1, h] @ q) + faded[i - before][:, b, hq]
        return torch.softmax(s, 0) @ v[b, : i + 1, h]

    return per_query(q, k.shape[2], before, row), with_length([k, v, torch.stack(c, 1)])


def stick_breaking(q, k, v, scale=None, state=None):
    scale = default(scale, q.shape[-1])
    (k, v), before = joined(state, k, v)

    def row(b, i, h, hq, q):
        share = torch.sigmoid(scale * (k[b, :i, h] @ q)).flip(0)  # from the nearest token back
        left = torch.cat([torch.ones_like(q[:1]), 1 - share]).cumprod(0)[:-1]
        return (left * share) @ v[b, :i, h].flip(0)

    return per_query(q, k.shape[2], before, row), with_length([k, v])


def cope(q, k, v, emb, scale=None, state=None):
    scale = default(scale, q.shape[-1])
    (k, v), before = joined(state, k, v)
    last = emb.shape[0] - 1

    def row(b, i, h, hq, q):
        s = scale * (k[b, : i + 1, h] @ q)
        p = torch.sigmoid(s).flip(0).cumsum(0).flip(0).clamp(max=last)  # counted from the query back
        low = p.detach().long()
        high = (low + 1).clamp(max=last)
        codes = emb[low] + (p - low)[:, None] * (emb[high] - emb[low])
        return torch.softmax(s + scale * (codes @ q), 0) @ v[b, : i + 1, h]

    return per_query(q, k.shape[2], before, row), with_length([k, v])


def kappa(scores, kernel, normalize):
    if kernel == "dot" or not len(scores):
        return scores
    return torch.softmax(scores, 0) if normalize else torch.exp(scores)


def delta_former(q, k, v, beta=None, w=None, kernel="exp", normalize=True, scale=None, state=None):
    scale = default(scale, q.shape[-1])
    w = k if w is None else w
    beta = torch.ones_like(k[..., 0]) if beta is None else beta
    before = 0 if state is None else state[0].shape[1]
    keys = k if state is None else torch.cat([state[0], k], 1)
    us = []
    for b in range(k.shape[0]):
        solved = []
        for h in range(k.shape[2]):
            u = [] if state is None else list(state[1][b, :, h])
            for t in range(k.shape[1]):
                i = before + t
                weights = kappa(scale * (keys[b, :i, h] @ w[b, t, h]), kernel, normalize)
                erased = sum((weights[j] * u[j] for j in range(i)), 0 * v[b, t, h])
                u.append(v[b, t, h] - beta[b, t, h] * erased)
            solved.append(torch.stack(u))
        us.append(torch.stack(solved, 1))
    written = torch.stack(us)

    def row(b, i, h, hq, q):
        return kappa(scale * (keys[b, : i + 1, h] @ q), kernel, normalize) @ written[b, : i + 1, h]

    return per_query(q, k.shape[2], before, row), with_length([keys, written])


def path_attention(q, k, v, w, beta=None, g=None, scale=None, state=None):
    scale = default(scale, q.shape[-1])
    beta = torch.ones_like(k[..., 0]) if beta is None else beta
    outputs, last = [], []
    for b in range(q.shape[0]):
        for h in range(k.shape[2]):
            keys = k[b, :0, h] if state is None else state.k[b, :, h]
            values = v[b, :, h] if state is None else torch.cat([state.v[b, :, h], v[b, :, h]])
            before = len(keys)
            heads = range(h * (q.shape[2] // k.shape[2]), (h + 1) * (q.shape[2] // k.shape[2]))
            held = {hq: [] if state is None or g is None else list(state.c[b, :, hq]) for hq in heads}
            gates = {hq: fading(held[hq], [] if g is None else list(g[b, :, hq])) for hq in heads}
            for t in range(q.shape[1]):
                keys = keys - beta[b, t, h] * torch.outer(keys @ w[b, t, h], w[b, t, h])
                keys = torch.cat([keys, k[b, t, h][None]])
                for hq in heads:
                    s = scale * (keys @ q[b, t, hq])
                    if g is not None:
                        s = s + gates[hq][0][t]
                    outputs.append((b, t, hq, torch.softmax(s, 0) @ values[: before + t + 1]))
            last.append((keys, values, [torch.stack(gates[hq][1]) for hq in heads if g is not None]))
    o, batch = [x for *_, x in sorted(outputs, key=lambda row: row[:3])], q.shape[0]
    columns = [rearrange([row[n] for row in last], "(B H) L K -> B L H K", B=batch) for n in (0, 1)]
    if g is not None:
        columns.append(rearrange([c for row in last for c in row[2]], "(B HQ) L -> B L HQ", B=batch))
    return rearrange(o, "(B T HQ) V -> B T HQ V", B=batch, T=q.shape[1]), with_length(columns)


def latent_attention(q, q_rope, latent, k_rope, w_k, w_v, scale=None, state=None):
    scale = default(scale, q.shape[-1] + q_rope.shape[-1])
    (c, r), before = joined(state, latent, k_rope)

    def row(b, i, h, hq, q):
        keys = torch.cat([c[b, : i + 1] @ w_k[hq], r[b, : i + 1]], 1)
        return torch.softmax(scale * (keys @ q), 0) @ (c[b, : i + 1] @ w_v[hq])

    return per_query(torch.cat([q, q_rope], -1), 1, before, row), with_length([c, r])


def shared_kv_attention(q, shared, q_rope=None, k_rope=None, v_own=None, scale=None, state=None):
    nothing = shared[..., :0]
    k_rope, v_own = (nothing if x is None else x for x in (k_rope, v_own))
    q = q if q_rope is None else torch.cat([q, q_rope], -1)
    scale = default(scale, q.shape[-1])
    (shared, k_rope, v_own), before = joined(state, shared, k_rope, v_own)

    def row(b, i, h, hq, q):
        keys = torch.cat([shared[b, : i + 1, h], k_rope[b, : i + 1, h]], -1)
        return torch.softmax(scale * (keys @ q), 0) @ torch.cat(
            [shared[b, : i + 1, h], v_own[b, : i + 1, h]], -1
        )

    return per_query(q, shared.shape[2], before, row), with_length([shared, k_rope, v_own])


def tensor_product_attention(q, a_k, b_k, a_v, b_v, scale=None, state=None):
    scale = default(scale, q.shape[-1])
    (a_k, b_k, a_v, b_v), before = joined(state, a_k, b_k, a_v, b_v)

    def mixed(a, b, i):
        return einsum(a[: i + 1], b[: i + 1], "L R, L R K -> L K") / a.shape[1]

    def row(b, i, h, hq, q):
        weights = torch.softmax(scale * (mixed(a_k[b, :, :, hq], b_k[b], i) @ q), 0)
        return weights @ mixed(a_v[b, :, :, hq], b_v[b], i)

    return per_query(q, 1, before, row), with_length([a_k, b_k, a_v, b_v])


def convolve(x, weight, bias, scale, state):
    width = weight.shape[1]
    seen = list((torch.zeros_like(x[:, :1]).expand(-1, width - 1, -1) if state is None else state).unbind(1))
    outputs = []
    for t in range(x.shape[1]):
        seen.append(x[:, t])
        outputs.append(scale * (bias + sum(weight[:, i] * seen[t + i] for i in range(width))))
    return torch.stack(outputs, 1), torch.stack(seen, 1)[:, len(seen) - width + 1 :]


def canon(x, weight, bias=None, scale=None, state=None):
    scale = 1.0 if scale is None else scale
    zero: Tensor = torch.zeros_like(x[0, 0])
    y, last = convolve(x, weight, zero if bias is None else bias, scale, state)
    return y + scale * x, last


def token_shift(x, mu, scale=None, state=None):
    previous = torch.zeros_like(x[:, 0]) if state is None else state[:, 0]
    outputs = []
    for t in range(x.shape[1]):
        outputs.append((1.0 if scale is None else scale) * ((1 - mu) * x[:, t] + mu * previous))
        previous = x[:, t]
    return torch.stack(outputs, 1), previous[:, None]


LOOPS = {
    f.__name__: f
    for f in (
        alibi,
        canon,
        cope,
        delta_former,
        forgetting_attention,
        latent_attention,
        path_attention,
        shared_kv_attention,
        stick_breaking,
        tensor_product_attention,
        token_shift,
    )
}
