"""Wide products lose no digit, and leave torch's settings as they were."""

import math
import threading
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import linrec
from linrec import rules
from linrec.engines.numerics import choices, products
from linrec.engines.numerics.products import EXACT, TRIED, error_of, small_products, wide_products
from linrec.models.config import Config
from linrec.models.language_model import LanguageModel
from linrec.models.training import TrainConfig, train_step

MATMUL = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 (torch's types do not know it)


@pytest.fixture(autouse=True)
def torchs_own_setting(monkeypatch):
    monkeypatch.setattr(choices, "_made", {})
    MATMUL.fp32_precision = "none"
    yield
    assert torch.get_float32_matmul_precision() == "highest"
    assert MATMUL.fp32_precision == "none"


@pytest.fixture
def clearly_faster(monkeypatch):
    """As on a processor where oneDNN is exact and wins at every size."""
    monkeypatch.setattr(products, "_exact", True)
    monkeypatch.setattr(choices, "fastest", lambda times: list(times)[-1])


@pytest.mark.parametrize("shape", [*TRIED, (1, 1, 300, 200), (3, 17, 5, 9), (2, 130, 1000, 70)])
def test_products_inside_keep_float32s_digits(shape):
    with wide_products():
        assert error_of(torch.bmm, *shape) < EXACT


def test_rounding_to_bfloat16_would_be_noticed():
    def rounded(x, y):
        return torch.bmm(x.bfloat16().float(), y.bfloat16().float())

    assert all(error_of(rounded, *shape) > 10 * EXACT for shape in TRIED)


def test_a_processor_that_rounds_is_left_alone(monkeypatch):
    monkeypatch.setattr(products, "_exact", False)
    with wide_products():
        assert MATMUL.fp32_precision == "none"


def test_a_processor_where_it_is_slower_is_left_alone(monkeypatch):
    monkeypatch.setattr(products, "_exact", True)
    monkeypatch.setattr(choices, "fastest", lambda times: next(iter(times)))
    with wide_products():
        assert MATMUL.fp32_precision == "none"
        with products.fitting_products(torch.empty(products.WORTH), "a scan", (1,), lambda: None):
            assert MATMUL.fp32_precision == "none"
    assert {choice.chosen for choice in choices.choices()} == {products.PLAIN}


def test_the_setting_is_put_back(clearly_faster):
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


def test_as_a_decorator_it_looks_at_each_call(monkeypatch):
    @wide_products()
    def inside():
        return MATMUL.fp32_precision

    monkeypatch.setattr(products, "_exact", False)
    assert inside() == "none"
    monkeypatch.setattr(products, "_exact", True)
    monkeypatch.setattr(choices, "fastest", lambda times: list(times)[-1])
    assert inside() == "bf16"


def test_chunks_of_small_states_are_left_to_mkl_and_not_timed(clearly_faster):
    done = []
    with wide_products():
        for numbers, setting in ((products.WORTH, "bf16"), (products.WORTH - 1, "none")):
            work = lambda: done.append(MATMUL.fp32_precision)  # noqa: E731
            with products.fitting_products(torch.empty(numbers), "a scan", (numbers,), work):
                assert MATMUL.fp32_precision == setting
            with products.fitting_products(torch.empty(numbers), "a scan", (numbers,)):  # known by now
                assert MATMUL.fp32_precision == setting
            assert set(done) == {"none", "bf16"}  # timed both ways, once
            assert len(done) <= 2 * (choices.MOST + 1)
        with products.fitting_products(torch.empty(products.WORTH).double(), "a scan", (0,), lambda: 1 // 0):
            pass


@pytest.mark.parametrize("chosen", ["ieee", "bf16"])
def test_a_setting_of_the_callers_stays_and_nothing_is_timed(chosen, clearly_faster):
    MATMUL.fp32_precision = chosen
    with linrec.wide_products():
        assert MATMUL.fp32_precision == chosen
    assert MATMUL.fp32_precision == chosen and not choices.choices()
    MATMUL.fp32_precision = "none"


def model():
    return LanguageModel(Config(d_model=16, num_layers=1, num_heads=2))


def train(model, steps=1):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        train_step(model, optimizer, torch.arange(18).view(2, 9), TrainConfig(steps=steps), step)


def test_training_multiplies_wide_in_both_directions(clearly_faster):
    trained, seen = model(), []
    trained.embed.register_forward_hook(lambda *_: seen.append(MATMUL.fp32_precision))
    trained.embed.weight.register_hook(lambda _: seen.append(MATMUL.fp32_precision))
    train(trained)
    assert seen == ["bf16"] * len(seen) and len(seen) >= 2


def test_a_prompt_is_read_wide_and_a_token_is_not(clearly_faster):
    read, seen = model().eval(), []
    read.blocks[0].register_forward_pre_hook(lambda *_: seen.append(MATMUL.fp32_precision))
    with torch.no_grad():
        state = read.prefill(torch.arange(9)[None]).state
        read.step(torch.tensor([[3]]), state)
    read(torch.arange(9)[None])  # with gradients it is the training loop's to say
    assert seen == ["bf16", "none", "none"]


def test_threads_that_train_and_stream_at_once(clearly_faster, monkeypatch):
    monkeypatch.setattr(products.SETTING, "inside", "ieee")  # exact on every processor
    barrier, results = threading.Barrier(6), []
    torch.manual_seed(0)
    whole = model().eval()
    with torch.no_grad():
        want = whole(torch.arange(12)[None]).logits

    def stream():
        barrier.wait()
        with torch.no_grad():
            for _ in range(5):
                first = whole.prefill(torch.arange(8)[None])
                results.append(whole(torch.arange(8, 12)[None], first.state).logits)

    work = [*[stream] * 3, *[lambda: barrier.wait() < 0 or train(model(), 5)] * 3]
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 15
    assert all(torch.allclose(got, want[:, 8:], atol=1e-5) for got in results)


def test_exactness_is_not_tried_where_it_would_be_seen(monkeypatch):
    monkeypatch.setattr(products, "_exact", None)
    with FakeTensorMode(), wide_products():
        pass
    assert products._exact is None
    with torch.autocast("cpu"), wide_products():
        pass
    assert products._exact is not None


def test_a_rule_is_timed_on_its_own_chunks(monkeypatch):
    """Both ways, and what was computed meanwhile is computed again."""
    monkeypatch.setattr(products, "_exact", True)
    monkeypatch.setattr(choices, "fastest", lambda times: next(iter(times)))
    draw = lambda *shape: torch.linspace(-1, 1, math.prod(shape)).sin().view(shape) / 8  # noqa: E731
    given: dict[str, Any] = {name: draw(1, 70, 8, 64) for name in ("q", "k", "v")}
    given |= {"g": -draw(1, 70, 8).abs(), "beta": draw(1, 70, 8).sigmoid()}
    results = rules.gated_delta_net(**given).o, rules.gated_delta_net(**given).o
    (choice,) = choices.choices()
    assert (
        choice.what.startswith("chunks of ScalarChunks, 8 heads, K=64, V=64, C=")
        and choice.chosen == products.PLAIN
    )
    assert choice.seconds.keys() == {products.PLAIN, products.WIDE}
    assert torch.equal(*results)
    assert torch.allclose(results[0], rules.gated_delta_net.recurrent(**given).o, atol=1e-6)
