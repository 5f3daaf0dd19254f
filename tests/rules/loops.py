"""One independent loop a rule, written from its equation and from nothing in linrec.

Each takes the rule's arguments in their public layout, ``scale`` and ``state``, walks batch, heads and time in
plain Python with matrix-vector algebra on single heads, and returns (o, state). They are differentiable.
A rule without a loop here fails the tests.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from tests.rules.loops_composite import LOOPS as COMPOSITE
from tests.rules.loops_delta import LOOPS as DELTA
from tests.rules.loops_elementwise import LOOPS as ELEMENTWISE
from tests.rules.loops_fastweight import LOOPS as FASTWEIGHT
from tests.rules.loops_feedback import LOOPS as FEEDBACK


def per_head(step, q, k, v, gates, scale, state):
    """Walk every (batch, value head): ``step(S, k_t, v_t, *gates_t) -> S``; o_t = S^T (scale q_t)."""
    batch, length, heads, width = k.shape
    value_heads, value_width = v.shape[2:]
    group = value_heads // heads
    outputs, states = [], []
    for b in range(batch):
        for h in range(value_heads):
            S = v.new_zeros(width, value_width) if state is None else state[b, h]
            for t in range(length):
                S = step(S, k[b, t, h // group], v[b, t, h], *(g[b, t, h] for g in gates))
                outputs.append(S.T @ (scale * q[b, t, h // group]))
            states.append(S)
    state = rearrange(states, "(B HV) K V -> B HV K V", B=batch)
    if length == 0:
        return v.new_zeros(batch, 0, value_heads, value_width), state
    return rearrange(outputs, "(B HV T) V -> B T HV V", B=batch, HV=value_heads), state


def decay_rows(S: Tensor, g: Tensor) -> Tensor:
    return torch.exp(g)[..., None] * S if g.dim() else torch.exp(g) * S


def delta(S: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    return S + beta * torch.outer(k, v - S.T @ k)


def delta_net(q, k, v, beta, scale=None, state=None):
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    return per_head(delta, q, k, v, [beta], scale, state)


def gated_delta_net(q, k, v, g, beta, scale=None, state=None):
    scale = k.shape[-1] ** -0.5 if scale is None else scale

    def step(S, k, v, g, beta):
        return delta(decay_rows(S, g), k, v, beta)

    return per_head(step, q, k, v, [g, beta], scale, state)


def kimi_delta_attention(q, k, v, g, beta, scale=None, state=None):
    return gated_delta_net(q, k, v, g, beta, scale, state)


def gla(q, k, v, g, scale=None, state=None):
    scale = k.shape[-1] ** -0.5 if scale is None else scale

    def step(S, k, v, g):
        return decay_rows(S, g) + torch.outer(k, v)

    return per_head(step, q, k, v, [g], scale, state)


def retnet(q, k, v, g, scale=None, state=None):
    return gla(q, k, v, g.expand(v.shape[:3]), scale, state)


def lightning(q, k, v, g, scale=None, state=None):
    return gla(q, k, v, g.expand(v.shape[:3]), 1.0 if scale is None else scale, state)


def mamba2(x, dt, A, B, C, D=None, scale=None, state=None):
    group = x.shape[2] // B.shape[2]
    scale = 1.0 if scale is None else scale
    rows, states = [], []
    for b in range(x.shape[0]):
        for h in range(x.shape[2]):
            S = x.new_zeros(B.shape[3], x.shape[3]) if state is None else state[b, h]
            for t in range(x.shape[1]):
                S = torch.exp(dt[b, t, h] * A[h]) * S + dt[b, t, h] * torch.outer(
                    B[b, t, h // group], x[b, t, h]
                )
                y = S.T @ (scale * C[b, t, h // group])
                rows.append(y if D is None else y + D[h] * x[b, t, h])
            states.append(S)
    sizes = {"B": x.shape[0], "HV": x.shape[2]}
    y = rearrange(rows, "(B HV T) P -> B T HV P", **sizes)
    return y, rearrange(states, "(B HV) N P -> B HV N P", **sizes)


def linear_attention(q, k, v, scale=None, state=None):
    def phi(x):
        return torch.where(x > 0, x + 1, torch.exp(x))

    values = torch.cat(
        [v, torch.ones_like(v[..., :1])], dim=-1
    )  # the last column accumulates the denominator
    scale = 1.0 if scale is None else scale
    o, last = per_head(lambda S, k, v: S + torch.outer(k, v), phi(q), phi(k), values, [], scale, state)
    return o[..., :-1] / o[..., -1:], last


def softmax_attention(q, k, v, scale=None, state=None):
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    before = 0
    if state is not None:
        before = state.k.shape[1]
        k, v = torch.cat([state.k, k], 1), torch.cat([state.v, v], 1)
    group = q.shape[2] // k.shape[2]
    rows = []
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            for h in range(q.shape[2]):
                seen = slice(0, before + t + 1)
                weights = torch.softmax(scale * (k[b, seen, h // group] @ q[b, t, h]), dim=0)
                rows.append(weights @ v[b, seen, h // group])
    length = torch.full((q.shape[0],), k.shape[1])
    return rearrange(rows, "(B T HQ) V -> B T HQ V", B=q.shape[0], T=q.shape[1]), (k, v, length)


LOOPS = (
    ELEMENTWISE
    | {
        f.__name__: f
        for f in (
            delta_net,
            gated_delta_net,
            kimi_delta_attention,
            gla,
            retnet,
            lightning,
            mamba2,
            linear_attention,
            softmax_attention,
        )
    }
    | FEEDBACK
    | COMPOSITE
    | DELTA
    | FASTWEIGHT
)
