"""What is particular to the elementwise layers, to RWKV-4 and to sLSTM."""

import pytest
import torch

from linrec import layers
from linrec.errors import ConfigError
from linrec.layers.shift import token_shift
from linrec.layers.state_space import hippo_normal


def tokens(batch=2, length=9, width=16):
    return torch.randn(batch, length, width, dtype=torch.float64)


def test_token_shift():
    x, last = tokens(), tokens()[:, 0]
    before, end = token_shift(x, last)
    assert torch.equal(before, torch.cat([last[:, None], x[:, :-1]], 1)) and torch.equal(end, x[:, -1])
    bounds = torch.tensor([0, 0, 4, 9, 9])
    start = tokens(4)[:, 0]
    before, end = token_shift(x[:1], start, bounds)
    want = torch.cat([start[1:2], x[0, :3], start[2:3], x[0, 4:8]])
    assert torch.equal(before[0], want)
    assert torch.equal(end, torch.stack([start[0], x[0, 3], x[0, 8], start[3]]))


def test_first_token_of_griffin_enters_with_weight_one():
    layer = layers.RGLRU(16, 2).double()
    x = tokens()
    u = layer.conv(layer.in_proj(x).chunk(2, -1)[0])[0]
    _, i = layer._gates(u)
    _, state = layer(x[:, :1])
    assert torch.allclose(state.memory, (i * u)[:, 0])
    _, later = layer(x[:, :1], state._replace(conv=None, memory=None))
    assert (later.memory.abs() < (i * u)[:, 0].abs()).all()


def test_decay_of_griffin_starts_between_its_radii():
    layer = layers.RGLRU(256, 4)
    decay = torch.exp(-8 * torch.nn.functional.softplus(layer.rate))
    assert decay.min() >= 0.9 and decay.max() <= 0.9991 and decay.std() > 0.02


def test_lower_bound_of_hgrn():
    layer = layers.HGRN(16, lower_bound=0.9).double()
    parts = (100 * layer.in_proj(tokens())).chunk(3, -1)
    kept = layer.arguments(tokens(), parts)["g"].exp()
    assert kept.min() >= 0.9 - 1e-12 and kept.max() <= 1
    assert torch.allclose(kept, 0.9 + 0.1 * parts[1].sigmoid())


def test_hippo_eigenvalues():
    frequency, vectors = hippo_normal(8)
    assert (frequency > 0).all() and vectors.shape == (8, 4)
    n = torch.arange(8, dtype=torch.float64)
    root = torch.sqrt(n + 0.5)
    legs = torch.zeros(8, 8, dtype=torch.float64)
    for i in range(8):
        for j in range(i + 1):
            legs[i, j] = -(i + 1) if i == j else -2 * root[i] * root[j]
    normal = (legs + torch.outer(root, root)).to(torch.complex128)
    assert torch.allclose(
        normal @ vectors, vectors * torch.complex(torch.full_like(frequency, -0.5), frequency)
    )


def test_initial_eigenvalues_of_lru_lie_on_the_ring():
    layer = layers.LRU(16, state_size=256, min_radius=0.5, max_radius=0.6)
    radius = layer.parameters_of_rule()["g"].exp()
    assert layer.states == 128 and radius.min() >= 0.499 and radius.max() <= 0.601


def test_initial_steps_of_mamba():
    layer = layers.Mamba(64)
    dt = torch.nn.functional.softplus(layer.step_proj.bias)
    assert dt.min() > 9e-4 and dt.max() < 0.11
    assert torch.allclose(layer.A_log.exp()[3], torch.arange(1.0, 17.0))


def test_options():
    x = tokens()
    assert layers.QRNN(16, expand=2).double()(x)[1].memory.shape == (2, 32)
    assert layers.MinGRU(16, conv_size=0).double()(x)[1].conv is None
    assert layers.SLSTM(16, 2, conv_size=0).double()(x)[1].conv is None
    assert layers.S4D(16, state_size=8).double()(x)[1].memory.shape == (2, 16, 4, 2)
    assert layers.RWKV4(16, layer=1, layers=3).double()(x)[0].shape == x.shape


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: layers.SLSTM(16, 3), "d_model=16 must divide into num_heads=3"),
        (lambda: layers.RGLRU(16, 3), "16 channels must divide into num_heads=3"),
        (lambda: layers.HGRN(16, lower_bound=1.0), r"lower_bound must be in \[0, 1\), got 1.0"),
        (lambda: layers.S5(16, state_size=7), "state_size=7 even"),
        (lambda: layers.LRU(16, max_radius=1.0), "max_radius < 1, got 0.9, 1.0"),
        (lambda: layers.Mamba(16, state_size=0), "must all leave positive sizes"),
        (lambda: layers.RWKV4(16, layer=2, layers=2), "layer=2 of layers=2 do not fit"),
        (lambda: layers.MinGRU(16, expand=0.01), "leave no channels"),
    ],
)
def test_sizes_that_do_not_fit(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
