"""Wide products lose no digit, and leave torch's settings as they were."""

import pytest
import torch

import linrec
from linrec.engines import products
from linrec.engines.products import EXACT, TRIED, error_of, small_products, wide_products
from linrec.models.config import Config
from linrec.models.language_model import LanguageModel
from linrec.models.training import TrainConfig, train_step

MATMUL = products._onednn().matmul


@pytest.fixture(autouse=True)
def torchs_own_setting():
    before = MATMUL.fp32_precision
    MATMUL.fp32_precision = "none"
    yield
    MATMUL.fp32_precision = before


@pytest.mark.parametrize("shape", [*TRIED, (1, 1, 300, 200), (3, 17, 5, 9), (2, 130, 1000, 70)])
def test_products_inside_keep_float32s_digits(shape):
    with wide_products():
        assert error_of(torch.bmm, *shape) < EXACT


def test_rounding_to_bfloat16_would_be_noticed():
    def rounded(x, y):
        return torch.bmm(x.bfloat16().float(), y.bfloat16().float())

    assert all(error_of(rounded, *shape) > 10 * EXACT for shape in TRIED)


def test_a_processor_that_rounds_is_left_alone(monkeypatch):
    monkeypatch.setattr(products, "_exact_in_onednn", lambda: False)
    with wide_products():
        assert MATMUL.fp32_precision == "none"


def test_the_setting_is_put_back(monkeypatch):
    monkeypatch.setattr(products, "_exact_in_onednn", lambda: True)
    with wide_products():
        with wide_products():
            assert MATMUL.fp32_precision == "bf16"
        with small_products():
            assert MATMUL.fp32_precision == "none"
        assert MATMUL.fp32_precision == "bf16"
    assert MATMUL.fp32_precision == "none"
    with pytest.raises(ZeroDivisionError), wide_products():
        _ = 1 // 0
    assert MATMUL.fp32_precision == "none"
    with small_products():
        assert MATMUL.fp32_precision == "none"


def test_chunks_of_small_states_are_left_to_mkl(monkeypatch):
    monkeypatch.setattr(products, "_exact_in_onednn", lambda: True)
    for numbers, setting in ((products.WORTH, "bf16"), (products.WORTH - 1, "none")):
        with wide_products(), products.fitting_products(torch.empty(numbers)):
            assert MATMUL.fp32_precision == setting


@pytest.mark.parametrize("chosen", ["ieee", "bf16"])
def test_a_setting_of_the_callers_stays(chosen):
    MATMUL.fp32_precision = chosen
    with linrec.wide_products():
        assert MATMUL.fp32_precision == chosen
    assert MATMUL.fp32_precision == chosen


def test_training_multiplies_wide_in_both_directions(monkeypatch):
    monkeypatch.setattr(products, "_exact_in_onednn", lambda: True)
    model, seen = LanguageModel(Config(d_model=16, num_layers=1, num_heads=2)), []
    model.embed.register_forward_hook(lambda *_: seen.append(MATMUL.fp32_precision))
    model.embed.weight.register_hook(lambda _: seen.append(MATMUL.fp32_precision))
    tokens = torch.arange(18).view(2, 9)
    train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), tokens, TrainConfig(steps=1), 0)
    assert seen == ["bf16"] * len(seen) and len(seen) >= 2
    assert MATMUL.fp32_precision == "none"
