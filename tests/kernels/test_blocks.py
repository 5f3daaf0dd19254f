"""Short convolution and gated RMSNorm through Triton, against torch in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from linrec.engines.convolution import causal_convolution
from linrec.engines.numerics.norm import gated_rms_norm
from linrec.testing import budget, relative_error
from tests.kernels.test_diagonal import weighted


def check(
    run: Callable[[list[Tensor], str], list[Tensor]], arguments: list[Tensor], dtype: torch.dtype
) -> None:
    """``run(leaves, backend)`` in float64, in ``dtype``, and in ``dtype`` through Triton: outputs and gradients."""

    def all_of(dtype: torch.dtype, backend: str) -> list[Tensor]:
        leaves = [x.to(low).to(dtype).requires_grad_() for x in arguments]
        outputs = run(leaves, backend)
        loss = torch.stack([weighted(y) for y in outputs]).sum()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        pairs = zip(leaves, gradients, strict=True)
        return [*outputs, *(torch.zeros_like(x) if g is None else g for x, g in pairs)]

    low = dtype
    want, plain, got = all_of(torch.float64, "torch"), all_of(dtype, "torch"), all_of(dtype, "triton")
    for number, (value, other, exact) in enumerate(zip(got, plain, want, strict=True)):
        assert value.dtype == other.dtype and value.shape == other.shape
        assert relative_error(value, exact) <= budget(other, exact, dtype) + torch.finfo(dtype).eps, number


# width, bias, silu, boundaries, tokens
CONVOLUTIONS = {
    "usual": (4, True, True, None, 70),
    "bare": (2, False, False, None, 5),
    "packed": (4, True, True, [0, 1, 1, 40, 70], 70),
    "packed, wide": (5, False, False, [0, 3, 70], 70),
    "one token": (3, False, True, None, 1),
    "shorter than the kernel": (4, True, False, None, 2),
    "no token": (4, True, True, None, 0),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(device: str, case: str) -> None:
    taps, bias, silu, bounds, tokens = CONVOLUTIONS[case]
    rows = 2 if bounds is None else len(bounds) - 1
    cu = None if bounds is None else torch.tensor(bounds, device=device)
    shapes = [(1 if bounds else rows, tokens, 70), (70, taps), (rows, taps - 1, 70)] + bias * [(70,)]
    arguments = [torch.randn(shape, device=device) for shape in shapes]

    def run(leaves: list[Tensor], backend: str) -> list[Tensor]:
        x, weight, state, *rest = leaves
        return list(causal_convolution(x, weight, rest[0] if rest else None, state, cu, silu, backend))

    check(run, arguments, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_convolution_in_low_precision(device: str, dtype: torch.dtype) -> None:
    arguments = [torch.randn(shape, device=device) for shape in ((2, 9, 5), (5, 4), (2, 3, 5), (5,))]
    check(
        lambda t, backend: list(causal_convolution(t[0], t[1], t[3], t[2], None, True, backend)),
        arguments,
        dtype,
    )


def test_one_token_in_place(device: str) -> None:
    from linrec.kernels.convolution import short_convolution_step_

    x, weight, bias, state = (torch.randn(s, device=device) for s in ((3, 6, 70), (70, 4), (70,), (3, 3, 70)))
    want, last = causal_convolution(x, weight, bias, state, silu=True, backend="torch")
    outputs = [short_convolution_step_(token, weight, bias, state, True) for token in x.split(1, dim=1)]
    assert relative_error(torch.cat(outputs, dim=1), want) < 5e-7
    assert torch.equal(state, last)


# shape, activation, gate before the norm, groups, gate at all
NORMS = {
    "heads": ((2, 3, 5, 40), "silu", False, 1, True),
    "sigmoid": ((7, 64), "sigmoid", False, 1, True),
    "gate first, groups": ((5, 80), "silu", True, 2, True),
    "gate first, sigmoid": ((70, 33), "sigmoid", True, 1, True),
    "plain": ((130, 24), "silu", False, 1, False),
    "plain, groups": ((3, 24), "silu", False, 3, False),
    "empty": ((0, 24), "silu", False, 1, True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", NORMS)
def test_norm(device: str, case: str, dtype: torch.dtype) -> None:
    shape, activation, first, groups, gated = NORMS[case]
    arguments = [torch.randn(s, device=device) for s in (shape, shape[-1:], shape)[: 2 + gated]]

    def run(leaves: list[Tensor], backend: str) -> list[Tensor]:
        x, weight, *gate = leaves
        options = (1e-5, activation, first, groups, backend)
        return [gated_rms_norm(x, weight, gate[0] if gate else None, *options)]

    check(run, arguments, dtype)
