"""The product of one row with a weight: the same by every call, and only where values are all that is wanted."""

import pytest
import torch
import torch.nn.functional as F

from linrec.engines import choices, linear
from linrec.engines.linear import PRODUCTS, best_product, one_row

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
def test_every_call_gives_the_same(name, shape, biased, rows, monkeypatch):
    monkeypatch.setattr(linear, "best_product", lambda *_: name)
    x, weight, bias = drawn(*shape)
    weight, bias = weight[:rows], bias[:rows] if biased else None
    want = (weight * x).sum(-1) + (0 if bias is None else bias)
    strided = x.repeat_interleave(2, -1)[..., ::2]
    with torch.no_grad():
        for given in (x, strided):
            y = one_row(given, weight, bias)
            if name == "F.linear":
                assert y is None
                continue
            assert y.shape == (*shape, rows)
            assert torch.allclose(y, want.expand_as(y), rtol=0, atol=1e-12)


def test_only_where_nothing_but_values_counts(monkeypatch):
    monkeypatch.setattr(linear, "best_product", lambda *_: "mv")
    x, weight, _ = drawn(1, dtype=torch.float32)
    assert one_row(x, weight) is None  # gradients are on
    with torch.no_grad():
        assert one_row(x, weight) is not None
        assert one_row(x.repeat(2, 1), weight) is None
        assert one_row(x.bfloat16(), weight.bfloat16()) is None and one_row(x.double(), weight) is None
        assert one_row(x, weight.T) is None and one_row(x.view(2, -1), weight[:, :48].contiguous()) is None
        assert one_row(x.to("meta"), weight.to("meta")) is None
        with torch.autocast("cpu"):
            assert one_row(x, weight) is None
        assert torch.func.vmap(lambda row: F.linear(row, weight) if one_row(row, weight) is None else row)(
            x
        ).shape
        monkeypatch.setattr(linear, "WORTH", weight.numel() + 1)
        assert one_row(x, weight) is None


def test_a_small_weight_is_never_timed(monkeypatch):
    monkeypatch.setattr(linear, "WORTH", 1 << 18)
    monkeypatch.setattr(linear, "best_product", lambda *_: pytest.fail("timed"))
    with torch.no_grad():
        assert one_row(*drawn(1)) is None


@pytest.mark.parametrize(("rows", "width"), [(64, 32), (50288, 768), (7, 3), (1, 1)])
def test_what_is_timed_is_bounded(rows, width, monkeypatch):
    monkeypatch.setattr(linear, "COLD", 1 << 20)
    works = linear._works(rows, width, True, torch.float32)
    lengths = {name: work().numel() for name, work in works.items()}
    assert len(set(lengths.values())) == 1 and 4 * width * next(iter(lengths.values())) <= max(
        1 << 19, 4 * width
    )


def test_the_choice_is_one_of_them():
    assert best_product(64, 64, False, torch.float32) in PRODUCTS
