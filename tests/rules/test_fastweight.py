"""Test-time training becomes the rules that it generalises, and Muon's step is what it should be."""

import pytest
import torch
import torch.nn.functional as F

from linrec import rules
from linrec.engines.fastweight import FASTWEIGHT, FastState, RowTerms, orthogonalised
from linrec.errors import DtypeError, FormError, ShapeError
from linrec.rule import Call
from linrec.testing import example_inputs, relative_error

F64 = torch.float64


def close(a, b, limit=1e-12):
    assert relative_error(a, b) < limit


def plain(q, k, v, lr, size, weights=None):
    """A linear memory without norm or bias, loss |k W - v|^2 / 2, rows with factor one."""
    w = torch.zeros(q.shape[2], q.shape[3], v.shape[3], dtype=F64) if weights is None else weights
    ones = torch.ones(size, dtype=F64)
    return RowTerms(q, k, v, (w,), size, lambda z, k, v: z - v, lambda q, z: z, False, ones, lr)


def run(terms, form="chunkwise"):
    call = Call(form, 1.0, None, None, "auto")
    return FASTWEIGHT.run(terms, None, call, "test")


@pytest.fixture
def tokens():
    x = example_inputs(rules.delta_net, T=40, HV=2)
    return x["q"], x["k"], x["v"], x["beta"]


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
def test_batches_of_one_are_delta_net(tokens, form):
    q, k, v, lr = tokens
    o, state = run(plain(q, k, v, lr, 1), form)
    want = rules.delta_net(q, k, v, lr, scale=1.0)
    close(o, want.o)
    close(state.start[0], want.state)


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
def test_one_batch_is_linear_attention(tokens, form):
    q, k, v, lr = tokens
    o = run(plain(q, k, v, lr, 40), form)[0]
    want = rules.linear_attention(q, k, lr[..., None] * v, feature_map="identity", normalize=False)
    close(o, want.o)


def test_titans_with_batches_of_one_and_no_momentum_is_gated_delta_without_decay(tokens):
    """mu -> -inf leaves M_t = M_{t-1} - lr grad, and the gradient of |k M - v|^2 is twice that of DeltaNet's loss."""
    q, k, v, lr = tokens
    forgotten, kept = torch.full_like(lr, -1e3), torch.zeros_like(lr)
    zero = torch.zeros(2, 8, 6, dtype=F64)
    o = rules.titans(q, k, v, lr / 2, kept, forgotten, zero, mini_batch=1).o
    close(o, rules.delta_net(q, k, v, lr, scale=1.0).o)


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
def test_titans_with_a_linear_memory_is_its_recurrence(tokens, form):
    q, k, v, lr = tokens
    g, mu = F.logsigmoid(torch.randn(2, *lr.shape, dtype=F64) + 2)
    w = torch.randn(2, 8, 6, dtype=F64)
    m, start, momentum, rows = w.expand(2, -1, -1, -1), w.expand(2, -1, -1, -1), 0 * w, []
    for t in range(40):
        start = m if t % 7 == 0 else start
        error = torch.einsum("bhk,bhkv->bhv", k[:, t], start) - v[:, t]
        grad = 2 * torch.einsum("bhk,bhv->bhkv", k[:, t], error)
        momentum = mu[:, t, :, None, None].exp() * momentum - lr[:, t, :, None, None] / 9 * grad
        m = g[:, t, :, None, None].exp() * m + momentum
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, t], m))
    out = rules.titans.form(form)(q, k, v, lr / 9, g, mu, w, mini_batch=7)
    close(out.o, torch.stack(rows, 1))
    assert out.state.place.tolist() == [40 % 7] * 2


def test_a_row_factor_belongs_to_the_reading_token():
    """The factor of row i multiplies all of its sum; as a factor of token j it would be another model."""
    x = example_inputs(rules.ttt_linear, T=5)
    out = rules.ttt_linear(**x)
    other = {**x, "token": torch.ones(5, dtype=F64), "lr": x["lr"] * x["token"][:, None]}
    assert relative_error(rules.ttt_linear(**other).o, out.o) > 1e-4


def test_large_chunks_apply_before_they_update():
    x = example_inputs(rules.large_chunk_ttt, T=12)
    out = rules.large_chunk_ttt(**x, mini_batch=6)
    changed = {**x, "v": x["v"].clone()}
    changed["v"][:, 2] += 1
    again = rules.large_chunk_ttt(**changed, mini_batch=6)
    assert torch.equal(again.o[:, :6], out.o[:, :6])
    assert relative_error(again.o[:, 6:], out.o[:, 6:]) > 1e-4


def test_muon_step():
    torch.manual_seed(0)
    for shape in ((20, 12), (12, 20), (3, 20, 12)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, dtype=F64)))
        assert values.min() > 0.5 and values.max() < 1.5
    zero = torch.zeros(4, 3, dtype=F64, requires_grad=True)
    orthogonalised(zero).sum().backward()
    assert zero.grad is not None and torch.isfinite(zero.grad).all()


def test_bad_input():
    x = example_inputs(rules.titans, T=3)
    with pytest.raises(ShapeError, match="mini_batch must be a positive integer, got 0"):
        rules.titans(**x, mini_batch=0)
    with pytest.raises(ShapeError, match="last weights must have V=6 columns"):
        rules.titans(**{**x, "w2": None, "w1": x["w1"][:, :, :4]})
    with pytest.raises(DtypeError, match="state must be a FastState"):
        rules.titans(**x, state=torch.zeros(2))
    state = rules.titans(**x).state
    assert isinstance(state, FastState)
    with pytest.raises(ShapeError, match="the state's tensors must be"):
        rules.titans(**x, state=state._replace(place=state.place[:1]))
    with pytest.raises(FormError, match="all earlier mini-batches"):
        rules.titans.parallel(**x)
