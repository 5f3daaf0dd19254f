"""The product of one row with a weight: the same by every call, and only where values are all that is wanted."""

import pytest
import torch
import torch.nn.functional as F

from linrec.engines.numerics import choices, linear
from linrec.engines.numerics.linear import PLAIN, PRODUCTS, best_product, fits, special_product

SIZE = 96


@pytest.fixture(autouse=True)
def every_weight_counts(monkeypatch):
    monkeypatch.setattr(linear, "WORTH", 0)
    monkeypatch.setattr(choices, "_made", {})


def drawn(*rows, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return draw(*rows, SIZE), draw(SIZE, SIZE) / SIZE**0.5, draw(SIZE)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("rows", [1, 8, 24, 89])  # a prime number of rows has no equal parts
def test_every_call_gives_the_same(name, shape, biased, rows):
    x, weight, bias = drawn(*shape)
    weight, bias = weight[:rows], bias[:rows] if biased else None
    want = (weight * x).sum(-1) + (0 if bias is None else bias)
    strided = x.repeat_interleave(2, -1)[..., ::2]
    with torch.no_grad():
        for given in (x, strided):
            assert fits(given, weight, bias)
            y = PRODUCTS[name](given, weight, bias)
            assert y.shape == (*shape, rows)
            assert torch.allclose(y, want.expand_as(y), rtol=0, atol=1e-12)


def taken(x, weight, bias=None):
    return special_product(x, *weight.shape) is not None and fits(x, weight, bias)


def test_only_where_nothing_but_values_counts(monkeypatch):
    monkeypatch.setattr(linear, "best_product", lambda *_: "mv")
    x, weight, bias = drawn(1, dtype=torch.float32)
    assert not taken(x, weight)  # gradients are on
    with torch.no_grad():
        assert taken(x, weight) and taken(x, weight, bias)
        assert not taken(x.repeat(2, 1), weight)
        assert not taken(x.bfloat16(), weight.bfloat16()) and not taken(x.double(), weight)
        assert not taken(x, weight.T) and not taken(x.view(2, -1), weight)
        assert not taken(x.to("meta"), weight.to("meta"))
        with torch.autocast("cpu"):
            assert not taken(x, weight)

        def row_of(x):
            assert not taken(x, weight)
            return F.linear(x, weight)

        torch.func.vmap(row_of)(x)
        monkeypatch.setattr(linear, "best_product", lambda *_: PLAIN)
        assert not taken(x, weight)


def test_a_small_weight_is_never_timed(monkeypatch):
    monkeypatch.setattr(linear, "WORTH", SIZE * SIZE + 1)
    monkeypatch.setattr(linear, "best_product", lambda *_: pytest.fail("timed"))
    with torch.no_grad():
        assert not taken(*drawn(1))


@pytest.mark.parametrize(("rows", "width"), [(64, 32), (50288, 768), (7, 3), (1, 1)])
def test_what_is_timed_is_bounded(rows, width, monkeypatch):
    monkeypatch.setattr(linear, "COLD", 1 << 20)
    results = [work() for work in linear._works(rows, width, torch.float32).values()]
    assert all(isinstance(y, torch.Tensor) for y in results)
    (length,) = {y.numel() for y in results if isinstance(y, torch.Tensor)}
    assert length <= rows and 4 * width * length <= max(1 << 19, 4 * width * linear.PARTS)


def test_the_choice_is_one_of_them():
    assert best_product(64, 64, torch.float32) in PRODUCTS
