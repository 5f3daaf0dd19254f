"""The gradient that test-time training descends, and its adjoint written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.fastweight.dual import gelu, through_gelu
from linrec.engines.fastweight.norm_loss import norm_loss_gradient
from linrec.testing import relative_error


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def inputs() -> list[Tensor]:
    """z, target, weight, bias of two heads."""
    return drawn((1, 2, 3, 5), (1, 2, 3, 5), (2, 1, 5), (2, 1, 5))


def test_it_is_the_gradient_of_the_loss() -> None:
    z, target, weight, bias = inputs()
    loss = (weight * F.layer_norm(z, (5,), eps=1e-6) + bias - target).square().sum() / 2
    (want,) = torch.autograd.grad(loss, z)
    assert relative_error(norm_loss_gradient(z, target, weight, bias), want) < 1e-13


def test_the_adjoint_is_that_of_its_definition() -> None:
    values = inputs()
    assert torch.autograd.gradcheck(norm_loss_gradient, values)
    z, target, weight, bias = values
    direction = torch.linspace(-1, 2, z.numel(), dtype=z.dtype).view_as(z)
    loss = (weight * F.layer_norm(z, (5,), eps=1e-6) + bias - target).square().sum() / 2
    (first,) = torch.autograd.grad(loss, z, create_graph=True)
    want = torch.autograd.grad(first, values, direction)
    got = torch.autograd.grad(norm_loss_gradient(*values), values, direction)
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 1e-12


def test_it_can_be_differentiated_again() -> None:
    assert torch.autograd.gradgradcheck(norm_loss_gradient, inputs())


def test_some_inputs_may_be_constants() -> None:
    z, target, weight, bias = inputs()
    both = torch.autograd.grad(norm_loss_gradient(z, target, weight, bias).square().sum(), (z, weight))
    fixed = norm_loss_gradient(z, target.detach(), weight, bias.detach()).square().sum()
    for a, b in zip(torch.autograd.grad(fixed, (z, weight), create_graph=True), both, strict=True):
        assert relative_error(a, b) < 1e-12


def test_back_through_gelu() -> None:
    z, back = drawn((3, 7), (3, 7))
    (want,) = torch.autograd.grad(gelu(z), z, back)
    assert relative_error(through_gelu(back, z), want) < 1e-13
    assert torch.autograd.gradcheck(through_gelu, (back, z))
    assert torch.autograd.gradgradcheck(through_gelu, (back, z))
