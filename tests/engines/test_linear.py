"""The product with a weight: the same through either library, and only where values are all that is wanted."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import profile

from linrec.engines.linear import WORTH, _has_onednn, linear

SIZE = 1024
needs_onednn = pytest.mark.skipif(not _has_onednn(), reason="this torch has no oneDNN")


def drawn(*rows, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return draw(*rows, SIZE), draw(SIZE, SIZE) / SIZE**0.5, draw(SIZE)


def calls(call):
    with profile() as record:
        call()
    return {event.key for event in record.key_averages()}


def by_parts(call):
    return "aten::bmm" in calls(call)


def through_onednn(call):
    return "mkldnn::_linear_pointwise" in calls(call)


@pytest.mark.parametrize("rows", [(1,), (1, 1), (2, 3), (40,), (0,)])
@pytest.mark.parametrize("biased", [True, False])
def test_same_product(rows, biased):
    x, weight, bias = drawn(*rows)
    bias = bias if biased else None
    with torch.no_grad():
        for given in (x, drawn(*rows)[0].repeat_interleave(2, -1)[..., ::2]):
            y, want = linear(given, weight, bias), F.linear(given, weight, bias)
            assert y.shape == want.shape
            assert torch.allclose(y, want, rtol=0, atol=1e-5)
        assert torch.allclose(linear(x, weight.T, bias), F.linear(x, weight.T, bias), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 8, 24, 1021])  # a prime number of rows has no equal parts
@pytest.mark.parametrize("biased", [True, False])
def test_one_row_by_parts_of_the_weight(rows, biased, dtype):
    x, weight, bias = drawn(1, dtype=dtype)
    weight, bias = weight[:rows], bias[:rows] if biased else None
    with torch.no_grad():
        assert torch.allclose(linear(x, weight, bias), F.linear(x, weight, bias), rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")
def test_parts_where_only_values_count():
    x, weight, _ = drawn(1)
    with torch.no_grad():
        assert by_parts(lambda: linear(x, weight)) and by_parts(lambda: linear(x.double(), weight.double()))
        assert not by_parts(lambda: linear(x, weight[:1021]))
        assert not by_parts(lambda: linear(x.bfloat16(), weight.bfloat16()))
        with torch.autocast("cpu"):
            assert linear(x, weight).dtype == torch.bfloat16
    assert not by_parts(lambda: linear(x, weight))  # gradients are on


@needs_onednn
def test_onednn_where_only_values_count_and_the_work_is_worth_it(monkeypatch):
    x, weight, bias = drawn(2)
    assert x.numel() * len(weight) >= WORTH
    with torch.no_grad():
        assert through_onednn(lambda: linear(x, weight, bias))
        assert through_onednn(lambda: linear(x.repeat(1, 2)[:1], weight.repeat(1, 2)[:1021]))
        assert not through_onednn(lambda: linear(x[:, :64], weight[:, :64].contiguous(), bias))
        assert not through_onednn(lambda: linear(x.double(), weight.double()))
        with torch.autocast("cpu"):
            assert not through_onednn(lambda: linear(x, weight))
            assert linear(x, weight).dtype == torch.bfloat16
        assert not through_onednn(lambda: torch.func.vmap(lambda row: linear(row, weight))(x[None]))
    assert not through_onednn(lambda: linear(x, weight))  # gradients are on
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with torch.no_grad():
        assert not through_onednn(lambda: linear(x, weight))


def test_derivatives():
    x, weight, bias = (t.requires_grad_() for t in drawn(2))
    gradients = torch.autograd.grad(linear(x, weight, bias).square().sum(), (x, weight, bias))
    assert all(g.abs().sum() > 0 for g in gradients)
    with torch.no_grad():
        tangent = torch.func.jvp(lambda x: linear(x, weight), (x.detach(),), (torch.ones_like(x),))[1]
    assert torch.allclose(tangent, weight.sum(1).expand(2, -1), atol=1e-4)


def test_errors_are_those_of_torch():
    x, weight, _ = drawn(2)
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x[:, :600], weight)
