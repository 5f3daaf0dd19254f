"""The short convolution as a sum of products: values, gradients and states, whole stretches and parts of one."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from linrec.engines.convolution import causal_convolution, short_convolution
from linrec.engines.numerics import taps
from linrec.testing import relative_error


def tensors(length=37, width=4, channels=5, bias=True, dtype=torch.float64, batch=2):
    torch.manual_seed(length)
    shapes = ((batch, length, channels), (channels, width), (channels,), (batch, width - 1, channels))
    x, weight, b, state = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return x, weight, b if bias else None, state


def loop(x, weight, bias, state, silu):
    """Token by token, a tap at a time."""
    inputs, rows = torch.cat([state, x], 1), []
    for t in range(x.shape[1]):
        y = torch.zeros_like(x[:, 0]) if bias is None else bias.expand_as(x[:, 0])
        for tap in range(weight.shape[1]):
            y = y + weight[:, tap] * inputs[:, t + tap]
        rows.append(y * torch.sigmoid(y) if silu else y)
    return torch.stack(rows, 1), inputs[:, x.shape[1] :]


@pytest.fixture(params=[1, 30, 1 << 16], ids=["a token", "a few", "all"])
def stretch(request, monkeypatch):
    monkeypatch.setattr(taps, "STRETCH", request.param)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("length", "width"), [(2, 4), (3, 4), (37, 4), (37, 2), (9, 1), (5, 9)])
def test_values_and_gradients(stretch, length, width, bias, silu):
    x: Any = tensors(length, width, bias=bias)
    leaves: Any = [None if t is None else t.requires_grad_() for t in x]
    wanted = [t for t in leaves if t is not None]
    outer = torch.randn_like(x[0])
    found = []
    functions: Any = (short_convolution, loop)
    for function in functions:
        y, state = function(leaves[0], leaves[1], leaves[2], leaves[3], silu=silu)
        found.append([y, state, *torch.autograd.grad((y * outer).sum() + state.sin().sum(), wanted)])
    for got, want in zip(*found, strict=True):
        assert got.shape == want.shape and relative_error(got, want) < 1e-13


def test_derivatives_of_gradients():
    x: Any = [t.requires_grad_() for t in tensors(6, 3, 2)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: taps.convolved(a, b, c, d, True), x)
    assert torch.autograd.gradgradcheck(lambda a, b, c, d: taps.convolved(a, b, c, d, True), x)


def test_transforms_take_the_plain_road():
    x, weight, bias, state = tensors()
    got = torch.func.grad(lambda w: short_convolution(x, w, bias, state, silu=True)[0].square().sum())(weight)
    leaf = weight.requires_grad_()
    (want,) = torch.autograd.grad(loop(x, leaf, bias, state, True)[0].square().sum(), leaf)
    assert relative_error(got, want) < 1e-13


def test_packed_segments():
    x, weight, bias, _ = tensors(batch=1)
    bounds = [0, 1, 1, 20, 37]
    state = torch.randn(4, 3, 5, dtype=torch.float64)
    y, after = causal_convolution(x, weight, bias, state, torch.tensor(bounds), silu=True)
    for row in range(4):
        part = x[:, bounds[row] : bounds[row + 1]]
        if part.shape[1]:
            want, last = loop(part, weight, bias, state[row : row + 1], True)
            assert relative_error(y[:, bounds[row] : bounds[row + 1]], want) < 1e-13
        else:
            last = state[row : row + 1]
        assert relative_error(after[row : row + 1], last) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype):
    x: Any = tensors(50, dtype=torch.float64)
    want = loop(x[0], x[1], x[2], x[3], True)[0]
    low: Any = [t.to(dtype) for t in x]
    library = F.silu(F.conv1d(torch.cat([low[3], low[0]], 1).mT, low[1][:, None], low[2], groups=5).mT)
    got = short_convolution(low[0], low[1], low[2], low[3], silu=True)[0]
    assert got.dtype == dtype
    assert relative_error(got, want) <= 2 * relative_error(library, want) + torch.finfo(dtype).eps


def test_a_state_does_not_keep_the_tokens():
    x, weight, bias, state = tensors()
    with torch.no_grad():
        _, after = short_convolution(x, weight, bias, state)
    assert after.untyped_storage().nbytes() == after.nbytes
