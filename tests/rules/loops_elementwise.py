"""Loops of the elementwise and sequential rules: token by token, from the equations and nothing in linrec."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import einsum


def walk(step, like, state, *tokens):
    """``step(h, *tokens_t) -> (y, h)`` over time for the whole batch; returns (y stacked, last h)."""
    outputs, h = [], state
    for t in range(like.shape[1]):
        y, h = step(h, *(x[:, t] for x in tokens))
        outputs.append(y)
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(like)), h


def gated(decay, x, scale, state, read=lambda h, t: h, extra=()):
    """h = decay h + x with multiplicative decays; read(h, extras)."""
    h = torch.zeros_like(x[:, 0]) if state is None else state

    def step(h, a, u, *more):
        h = a * h + u
        return read((1.0 if scale is None else scale) * h, more), h

    return walk(step, x, h, decay, x, *extra)


def hgrn(x, g, scale=None, state=None):
    return gated(torch.exp(g), (1 - torch.exp(g)) * x, scale, state)


def rg_lru(x, g, i, scale=None, state=None):
    a = torch.exp(g)
    return gated(a, torch.sqrt(1 - a * a) * i * x, scale, state)


def candidate(x):
    return torch.where(x >= 0, x + 0.5, 1 / (1 + torch.exp(-x)))


def min_gru(x, z, scale=None, state=None):
    z = torch.sigmoid(z)
    return gated(1 - z, z * candidate(x), scale, state)


def min_lstm(x, f, i, scale=None, state=None):
    f, i = torch.sigmoid(f), torch.sigmoid(i)
    return gated(f / (f + i), i / (f + i) * candidate(x), scale, state)


def qrnn(x, g, o, i, scale=None, state=None):
    return gated(torch.exp(g), i * x, scale, state, lambda h, more: more[0] * h, [o])


def sru(x, g, r, y, scale=None, state=None):
    f = torch.exp(g)
    return gated(f, (1 - f) * x, scale, state, lambda h, more: more[0] * h + (1 - more[0]) * more[1], [r, y])


def mamba(x, dt, A, B, C, D=None, scale=None, state=None):
    h = x.new_zeros(x.shape[0], *A.shape) if state is None else state

    def step(h, x, dt, B, C):
        decay = torch.exp(einsum(dt, A, "B D, D N -> B D N"))
        h = decay * h + einsum(dt, B, x, "B D, B N, B D -> B D N")
        y = einsum(h, C, "B D N, B N -> B D") * (1.0 if scale is None else scale)
        return (y if D is None else y + D * x), h

    return walk(step, x, h, x, dt, B, C)


def longhorn(q, k, v, beta, D=None, scale=None, state=None):
    h = v.new_zeros(v.shape[0], v.shape[2], k.shape[2]) if state is None else state

    def step(h, q, k, v, beta):
        eps = beta / (1 + einsum(beta, k, k, "B D, B N, B N -> B D"))
        h = (1 - einsum(eps, k, k, "B D, B N, B N -> B D N")) * h + einsum(
            eps, v, k, "B D, B D, B N -> B D N"
        )
        o = einsum(h, q, "B D N, B N -> B D") * (1.0 if scale is None else scale)
        return (o if D is None else o + D * v), h

    return walk(step, v, h, q, k, v, beta)


def complex_state(x, shape, state):
    if state is None:
        return torch.zeros(x.shape[0], *shape, dtype=torch.complex(x[:0], x[:0]).dtype)
    return torch.complex(state[..., 0], state[..., 1])


def pairs(result):
    o, h = result
    return o, torch.stack([h.real, h.imag], -1)


def s4d(x, dt, A_re, A_im, C_re, C_im, D=None, scale=None, state=None):
    A, C = torch.complex(A_re, A_im), torch.complex(C_re, C_im)
    decay = torch.exp(dt[:, None] * A)
    gain = (decay - 1) / A
    scale = 1.0 if scale is None else scale

    def step(h, u):
        h = decay * h + gain * u[..., None]
        y = 2 * scale * einsum(C, h, "D N, B D N -> B D").real
        return (y if D is None else y + D * u), h

    return pairs(walk(step, x, complex_state(x, A.shape, state), x))


def dense(x, decay, B, C, D, scale, state):
    def step(h, u):
        h = decay * h + einsum(B, u.to(B.dtype), "N D, B D -> B N")
        y = (1.0 if scale is None else scale) * einsum(C, h, "D N, B N -> B D").real
        return (y if D is None else y + D * u), h

    return pairs(walk(step, x, complex_state(x, decay.shape, state), x))


def s5(x, dt, A_re, A_im, B_re, B_im, C_re, C_im, D=None, scale=None, state=None):
    A = torch.complex(A_re, A_im)
    decay = torch.exp(dt * A)
    B = ((decay - 1) / A)[:, None] * torch.complex(B_re, B_im)
    return dense(x, decay, B, 2 * torch.complex(C_re, C_im), D, scale, state)


def lru(x, g, angle, B_re, B_im, C_re, C_im, D=None, scale=None, state=None):
    decay = torch.exp(g) * torch.complex(torch.cos(angle), torch.sin(angle))
    gain = torch.sqrt(1 - torch.exp(g) ** 2)[:, None]
    return dense(x, decay, gain * torch.complex(B_re, B_im), torch.complex(C_re, C_im), D, scale, state)


class Sums(NamedTuple):
    num: torch.Tensor
    den: torch.Tensor
    m: torch.Tensor


def rwkv4(k, v, w, u, scale=None, state=None):
    zero = torch.zeros_like(k[:, 0])
    state = Sums(zero, zero, zero - 1e38) if state is None else state

    def step(s, k, v):
        top = torch.maximum(s.m, u + k)
        old, new = torch.exp(s.m - top), torch.exp(u + k - top)
        o = (old * s.num + new * v) / (old * s.den + new)
        m = torch.maximum(w + s.m, k).detach()  # a unit of measurement, fixed in derivatives
        old, new = torch.exp(w + s.m - m), torch.exp(k - m)
        return (1.0 if scale is None else scale) * o, Sums(old * s.num + new * v, old * s.den + new, m)

    return walk(step, k, state, k, v)


class Cell(NamedTuple):
    c: torch.Tensor
    n: torch.Tensor
    h: torch.Tensor
    m: torch.Tensor


def slstm(z, i, f, o, Rz, Ri, Rf, Ro, scale=None, state=None):
    zero = torch.zeros_like(z[:, 0])
    state = Cell(zero, zero, zero, zero - 1e38) if state is None else state

    def step(s, z, i, f, o):
        z, i, f, o = (
            x + einsum(R, s.h, "HV J V, B HV V -> B HV J") for x, R in ((z, Rz), (i, Ri), (f, Rf), (o, Ro))
        )
        f = -torch.log1p(torch.exp(-f))
        m = torch.maximum(f + s.m, i)
        c = torch.exp(f + s.m - m) * s.c + torch.exp(i - m) * torch.tanh(z)
        n = torch.exp(f + s.m - m) * s.n + torch.exp(i - m)
        h = torch.sigmoid(o) * c / n
        return (1.0 if scale is None else scale) * h, Cell(c, n, h, m)

    return walk(step, z, state, z, i, f, o)


def true_rwkv4(k, v, w, u):
    """RWKV-4 as double sums in plain floats, without any stabiliser; k, v ``[T]``, w and u numbers."""
    outputs = []
    for t in range(len(k)):
        weights = [math.exp((t - 1 - j) * w + k[j]) for j in range(t)] + [math.exp(u + k[t])]
        outputs.append(sum(a * b for a, b in zip(weights, v, strict=False)) / sum(weights))
    return outputs


LOOPS = {
    f.__name__: f
    for f in (
        hgrn,
        rg_lru,
        min_gru,
        min_lstm,
        qrnn,
        sru,
        mamba,
        longhorn,
        s4d,
        s5,
        lru,
        rwkv4,
        slstm,
    )
}
