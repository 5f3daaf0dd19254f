"""Loops of rules with a bonus, phases, slots or levels, and of those that solve; see :mod:`tests.rules.loops`."""

from __future__ import annotations

import torch
from einops import rearrange

from tests.rules.loops_walk import default, matrix_walk, outer, walk, zeros_or


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


def mlstm(q, k, v, g, i, scale=None, state=None):
    scale, group = default(scale, k), v.shape[2] // k.shape[2]

    def token(b, h, t, held):
        memory, m_before = held
        kt, vt = k[b, t, h // group], torch.cat([v[b, t, h], v.new_ones(1)])
        m = torch.maximum(g[b, t, h] + m_before, i[b, t, h]).detach()  # units, chosen freely
        memory = torch.exp(g[b, t, h] + m_before - m) * memory + torch.exp(i[b, t, h] - m) * outer(kt, vt)
        o = memory.T @ (scale * q[b, t, h // group])
        return o[:-1] / torch.maximum(o[-1].abs(), torch.exp(-m)), (memory, m)

    shapes = (k.shape[3], v.shape[3] + 1), ()
    return walk(token, v.shape[0], v.shape[2], v.shape[1], zeros_or(state, v, *shapes))


def dfw(q, k, v, g, h, scale=None, state=None):
    def step(S, q, k, v, b, n, t):
        S = outer(torch.exp(g[b, t, n]), torch.exp(h[b, t, n])) * S + outer(k, v)
        return S.T @ q, S

    return matrix_walk(step, q, k, v, default(scale, k), state)


def gated_slot_attention(q, k, v, g, scale=None, state=None):
    scale, group = default(scale, k), v.shape[2] // k.shape[2]

    def token(b, h, t, held):
        keys, values = held[0].T, held[1]
        f = torch.exp(g[b, t, h])
        keys = f[:, None] * keys + outer(1 - f, k[b, t, h // group])
        values = f[:, None] * values + outer(1 - f, v[b, t, h])
        return values.T @ torch.softmax(keys @ (scale * q[b, t, h // group]), 0), (keys.T, values)

    starts = zeros_or(state, v, (k.shape[3], g.shape[3]), (g.shape[3], v.shape[3]))
    return walk(token, v.shape[0], v.shape[2], v.shape[1], starts)


def abc(q, k, v, z, scale=None, state=None):
    """With unnormalised sums: a slot is the sum of e^z (k, v) over the sum of e^z."""
    scale, group = default(scale, k), v.shape[2] // k.shape[2]

    def token(b, h, t, held):
        keys, values, weight = held[0].T * torch.exp(held[2])[:, None], held[1], torch.exp(held[2])
        values = values * weight[:, None]
        w = torch.exp(z[b, t, h])
        total = (weight + w)[:, None]
        keys = (keys + outer(w, k[b, t, h // group])) / total
        values = (values + outer(w, v[b, t, h])) / total
        o = values.T @ torch.softmax(keys @ (scale * q[b, t, h // group]), 0)
        return o, (keys.T, values, torch.log(total[:, 0]))

    def starts(b, h):
        if state is not None:
            return state.slots.keys[b, h], state.slots.values[b, h], state.log_weight[b, h]
        slots = z.shape[3]
        empty = v.new_full((slots,), -torch.inf)
        return v.new_zeros(k.shape[3], slots), v.new_zeros(slots, v.shape[3]), empty

    return walk(token, v.shape[0], v.shape[2], v.shape[1], starts)


def turned(S, angle):
    """Rows 2i, 2i + 1 of S turned by ``angle[i]``, through complex numbers."""
    n = 2 * angle.shape[0]
    pairs = torch.complex(S[0:n:2], S[1:n:2]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([rearrange([pairs.real, pairs.imag], "two J V -> (J two) V"), S[n:]])


def gateloop(q, k, v, g, theta, scale=None, state=None):
    """The complex recurrence itself; the state keeps the imaginary part negated."""

    def step(S, q, k, v, b, h, t):
        s = torch.complex(S[0::2], -S[1::2])
        gate = torch.polar(torch.exp(g[b, t, h]), theta[b, t, h])
        s = gate[:, None] * s + torch.complex(k[0::2], -k[1::2])[:, None] * v[None]
        o = (s.T @ torch.complex(q[0::2], q[1::2])).real
        return o, rearrange([s.real, -s.imag], "two J V -> (J two) V")

    return matrix_walk(step, q, k, v, 1.0 if scale is None else scale, state)


def mamba3(x, dt, A, B, C, lam, theta, D, scale=None, state=None):
    scale, group = 1.0 if scale is None else scale, x.shape[2] // B.shape[2]

    def token(b, h, t, held):
        S, k_before, v_before = held
        k, v, step, mix = B[b, t, h // group], x[b, t, h], dt[b, t, h], lam[b, t, h]
        S = torch.exp(step * A[h]) * turned(S + (1 - mix) * step * outer(k_before, v_before), -theta[b, t, h])
        S = S + mix * step * outer(k, v)
        return S.T @ (scale * C[b, t, h // group]) + D[h] * v, (S, k, v)

    starts = zeros_or(state, x, (B.shape[3], x.shape[3]), (B.shape[3],), (x.shape[3],))
    return walk(token, x.shape[0], x.shape[2], x.shape[1], starts)


def mamba3_mimo(x, dt, A, B, C, lam, theta, mimo_x, D, scale=None, state=None):
    scale, group = 1.0 if scale is None else scale, x.shape[2] // B.shape[2]

    def token(b, h, t, held):
        S, k_before, x_before = held
        k, now, step, mix = B[b, t, h // group], x[b, t, h], dt[b, t, h], lam[b, t, h]
        for r in range(B.shape[3]):
            S = S + (1 - mix) * step * outer(k_before[r], x_before * mimo_x[h, r])
        S = torch.exp(step * A[h]) * turned(S, -theta[b, t, h])
        for r in range(B.shape[3]):
            S = S + mix * step * outer(k[r], now * mimo_x[h, r])
        queries = scale * C[b, t, h // group]
        rows = [S.T @ q + D[h] * now * mimo_x[h, r] for r, q in enumerate(queries)]
        return torch.stack(rows), (S, k, now)

    starts = zeros_or(state, x, (B.shape[4], x.shape[3]), tuple(B.shape[3:]), (x.shape[3],))
    return walk(token, x.shape[0], x.shape[2], x.shape[1], starts)


def log_linear(transition, write, q, k, v, lam, scale, state):
    """The states of the levels, merged as the tokens come; ``transition(S, k, b, h, t)``, ``write(k, v, b, h, t)``."""
    levels, group = lam.shape[3], v.shape[2] // k.shape[2]

    def token(b, h, t, held):
        (memory,) = held
        kt, now = k[b, t, h // group], t + (0 if state is None else int(state.seen[b]))
        if now:  # merge the levels up to the lowest set bit of the position into the next one
            lowest = (now & -now).bit_length() - 1
            top = min(lowest + 1, levels - 1)
            merged = memory[: lowest + 2].sum(0) if top == lowest + 1 else memory.sum(0)
            rest = [memory[n] for n in range(top + 1, levels)]
            memory = torch.stack([*[torch.zeros_like(merged)] * top, merged, *rest])
        memory = torch.stack([transition(S, kt, b, h, t) for S in memory])
        memory = torch.cat([(memory[0] + write(kt, v[b, t, h], b, h, t))[None], memory[1:]])
        o = sum(lam[b, t, h, n] * (memory[n].T @ (scale * q[b, t, h // group])) for n in range(levels))
        return o, (memory,)

    def starts(b, h):
        if state is None:
            return (v.new_zeros(levels, k.shape[3], v.shape[3]),)
        last = int(state.seen[b]) - 1  # a level without a bucket holds nothing
        used = [
            n == 0 or (last >> (n - 1)) & 1 or (n == levels - 1 and last >> (n - 1) > 0)
            for n in range(levels)
        ]
        return (torch.stack([state.memory[b, n, h] * bool(u) for n, u in enumerate(used)]),)

    o, (last,) = walk(token, v.shape[0], v.shape[2], v.shape[1], starts)
    seen = torch.full((v.shape[0],), v.shape[1]) + (0 if state is None else state.seen)
    return o, (rearrange(last, "B HV L K V -> B L HV K V"), seen)


def log_linear_attention(q, k, v, g, lam, scale=None, state=None):
    return log_linear(
        lambda S, k, *at: torch.exp(g[at[0], at[2], at[1]]) * S,
        lambda k, v, *at: outer(k, v),
        *(q, k, v, lam, default(scale, k), state),
    )


def log_linear_gated_delta(q, k, v, g, beta, lam, scale=None, state=None):
    def transition(S, k, b, h, t):
        S = torch.exp(g[b, t, h]) * S
        return S - beta[b, t, h] * outer(k, S.T @ k)

    def write(k, v, b, h, t):
        return beta[b, t, h] * outer(k, v)

    return log_linear(transition, write, q, k, v, lam, default(scale, k), state)


def mesa_net(q, k, v, g, beta, lam, scale=None, state=None):
    scale, group = 1.0 if scale is None else scale, v.shape[2] // k.shape[2]

    def token(b, h, t, held):
        S, H = held
        kt, decay = k[b, t, h // group], torch.exp(g[b, t, h])
        S = decay * S + beta[b, t, h] * outer(kt, v[b, t, h])
        H = decay * H + beta[b, t, h] * outer(kt, kt)
        inverse = torch.linalg.inv(H.T + torch.diag(lam[h]))
        return S.T @ (inverse @ (scale * q[b, t, h // group])), (S, H)

    starts = zeros_or(state, v, (k.shape[3], v.shape[3]), (k.shape[3], k.shape[3]))
    return walk(token, v.shape[0], v.shape[2], v.shape[1], starts)


LOOPS = {
    f.__name__: f
    for f in (
        rwkv6,
        rwkv5,
        hgrn2,
        mlstm,
        dfw,
        gated_slot_attention,
        abc,
        gateloop,
        mamba3,
        mamba3_mimo,
        log_linear_attention,
        log_linear_gated_delta,
        mesa_net,
    )
}
