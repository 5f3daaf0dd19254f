"""PaTH attention: DeltaNet's matrix inside a softmax, its limits, and its cache."""

import pytest
import torch
import torch.nn.functional as F

from linrec import rules
from linrec.engines.attention import KVCache
from linrec.rules.path_attention import path_attention
from linrec.testing import relative_error
from tests.rules.identities import FORMS, close, qkv

F64 = torch.float64


def path_weights(q, k, w, beta=None):
    """A itself, without softmax: the scores of one head are read off with log-linear values."""
    length = q.shape[1]
    scores = torch.zeros(length, length, dtype=F64)
    for i in range(length):
        moved = q[0, i, 0]
        for j in range(i, -1, -1):
            scores[i, j] = moved @ k[0, j, 0]
            strength = 1.0 if beta is None else beta[0, j, 0]
            moved = moved - strength * w[0, j, 0] * (w[0, j, 0] @ moved)
    return scores


def softmax_of(scores, v):
    causal = torch.ones_like(scores, dtype=torch.bool).tril()
    return torch.softmax(scores.masked_fill(~causal, -torch.inf), -1) @ v[0, :, 0]


@pytest.mark.parametrize("form", FORMS)
def test_path_with_keys_as_directions_has_delta_nets_matrix(form):
    q, k, v = qkv(50, heads=1, batch=1)
    k = F.normalize(k, dim=-1)
    ones = torch.ones(1, 50, 1, dtype=F64)
    unit = torch.eye(50, dtype=F64)[None, :, None]
    matrix = rules.delta_net(q, k, unit, ones, scale=1.0).o[0, :, 0]
    close(matrix, path_weights(q, k, k), 1e-11)
    close(path_attention.form(form)(q, k, v, k, scale=1.0).o[0, :, 0], softmax_of(matrix, v), 1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_path_with_reflections_is_softmax_of_two_delta_nets(form):
    q, k, v = qkv()
    w = 2**0.5 * F.normalize(torch.randn_like(k), dim=-1)
    ones = torch.ones(2, 70, 2, dtype=F64)

    def erased(x):
        return x - rules.delta_net(x, w, w, ones, scale=1.0).o

    want = rules.softmax_attention(erased(q), erased(k), v, scale=0.4).o
    close(path_attention.form(form)(q, k, v, w, scale=0.4).o, want, 1e-11)
    close(path_attention.form(form)(q, k, v, w / 2**0.5, 2 * ones, scale=0.4).o, want, 1e-11)
    other = path_attention(q, k, v, 0.9 * w, scale=0.4).o
    w = 0.9 * w
    assert relative_error(rules.softmax_attention(erased(q), erased(k), v, scale=0.4).o, other) > 1e-3


def test_path_without_directions_is_softmax_or_forgetting_attention():
    q, k, v = qkv(groups=2)
    nothing = torch.zeros_like(k)
    g = F.logsigmoid(torch.randn(*q.shape[:3], dtype=F64))
    close(path_attention(q, k, v, nothing).o, rules.softmax_attention(q, k, v).o)
    close(path_attention(q, k, v, nothing, g=g).o, rules.forgetting_attention(q, k, v, g).o)
    assert isinstance(path_attention(q, k, v, nothing).state, KVCache)


def test_path_rewrites_every_cached_key():
    q, k, v = qkv(9)
    w = F.normalize(torch.randn_like(k), dim=-1)
    before = path_attention(q[:, :8], k[:, :8], v[:, :8], w[:, :8]).state
    after = path_attention.step(q[:, 8:], k[:, 8:], v[:, 8:], w[:, 8:], state=before).state
    last = w[:, 8:]
    close(after.k[:, :8], before.k - last * (before.k * last).sum(-1, keepdim=True))
    close(after.k[:, 8:], k[:, 8:])
