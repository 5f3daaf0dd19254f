"""Every derivative of every layer, by its input and all its parameters, in every mode of torch, against differences."""

import itertools
from typing import Any

import pytest
import torch

from linrec.layers import LAYERS
from linrec.testing import relative_error
from tests.differentiation import (
    MODES,
    along_them,
    difference_of_gradients,
    difference_of_values,
    directions,
    gradient,
    joined,
    reverse_over_reverse,
)

NAMES = sorted(LAYERS)
TIGHT, BY_DIFFERENCES = 1e-10, 1e-6
SMALL: dict[str, Any] = {"large_chunk_ttt": {"mini_batch": 3}}


def made(name):
    """The layer, and its input and parameters: moved from where they begin, so that none is zero."""
    torch.manual_seed(5)
    layer = LAYERS[name](8, 2, **SMALL.get(name, {})).double()
    values = [torch.randn(2, 5, 8, dtype=torch.float64)]
    values += [p.detach() + 0.1 * torch.randn_like(p) for p in layer.parameters()]
    return layer, values


def loss_of(layer, lengths, x, *parameters):
    """Of all outputs; the tokens come in pieces."""
    named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
    state, outputs = None, []
    for piece in x.split(lengths, dim=1):
        y, state = torch.func.functional_call(layer, named, (piece, state))
        outputs.append(y)
    y = torch.cat(outputs, dim=1)
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives(name):
    layer, values = made(name)
    along = [0.3 * v for v in directions(values)]

    def loss(*values):
        return loss_of(layer, [5], *values)

    first, slope = gradient(loss, values), difference_of_values(loss, values, along)
    second = joined(difference_of_gradients(loss, values, along))
    got = along_them(first, along)
    assert relative_error(got, slope) < BY_DIFFERENCES
    for mode, differentiate in MODES.items():
        again, twice = differentiate(loss, values, along)
        if isinstance(again, torch.Tensor):
            assert relative_error(again, slope) < BY_DIFFERENCES, mode
        else:
            assert relative_error(joined(again), joined(first)) < TIGHT, mode
        assert relative_error(joined(twice), second) < BY_DIFFERENCES, mode
    again, twice = reverse_over_reverse(lambda *v: loss_of(layer, [2, 1, 2], *v), values, along)
    assert relative_error(joined(again), joined(first)) < TIGHT
    assert relative_error(joined(twice), second) < BY_DIFFERENCES


@pytest.mark.parametrize("name", NAMES)
def test_what_changes_in_place_is_noticed(name):
    """A parameter, or the input, between forward and backward: torch raises, or the gradient is as if it had not."""
    layer, (x, *parameters) = made(name)
    with torch.no_grad():
        for p, value in zip(layer.parameters(), parameters, strict=True):
            p.copy_(value)
    every = [x, *layer.parameters()]
    for changed, needed in itertools.product(every, (False, True)):
        leaves = [p.requires_grad_(needed or p is not changed) for p in every]
        leaves = [p for p in leaves if p.requires_grad]
        want = torch.autograd.grad(layer(x)[0].sum(), leaves, allow_unused=True)
        result, before = layer(x)[0].sum(), changed.detach().clone()
        with torch.no_grad():
            changed.mul_(1.5)
        try:
            got = torch.autograd.grad(result, leaves, allow_unused=True)
        except RuntimeError as error:
            if "modified" not in str(error):
                raise
        else:
            assert all(relative_error(a, b) < TIGHT for a, b in zip(got, want, strict=True) if a is not None)
        with torch.no_grad():
            changed.copy_(before)
