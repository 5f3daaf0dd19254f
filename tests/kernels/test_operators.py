"""The operators as torch sees them: schemas, shapes without data, gradients, compile and export."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from linrec import rules
from linrec.errors import BackendError
from linrec.testing import example_inputs


def arguments(device: str) -> dict[str, tuple[Any, ...]]:
    """For each operator, arguments that require gradients."""

    def leaf(*shape: int) -> Tensor:
        return torch.rand(shape, device=device).requires_grad_()

    cu = torch.tensor([0, 2, 5], device=device)
    x, weight, bias, state = leaf(1, 5, 3), leaf(3, 4), leaf(3), leaf(2, 3, 3)
    q, k, v, strength = leaf(1, 5, 1, 16), leaf(1, 5, 1, 16), leaf(1, 5, 2, 8), leaf(1, 5, 2)
    g, a = ((-torch.rand(s, device=device)).requires_grad_() for s in ((1, 5, 2), (1, 5, 1, 16)))
    options = (
        0.5,
        16,
        "decayed",
        "post",
        torch.float32,
        False,
    )  # what is kept is undefined above the diagonal
    step, rate, into, out, skip, start = x, leaf(3, 2), leaf(1, 5, 2), leaf(1, 5, 2), leaf(3), leaf(2, 3, 2)
    return {
        "diagonal.diagonal_scan": (leaf(2, 5, 3), leaf(2, 5, 3), leaf(2, 3), None, True, False),
        "diagonal.diagonal_scan, complex": (leaf(1, 1, 3, 2), leaf(1, 5, 3, 2), leaf(2, 3, 2), cu, False, True),
        "selective.selective_scan": (step, x, rate, into, out, skip, start, cu, 0.5, True, True),
        "selective.selective_scan, bare": (
            None, leaf(2, 5, 3), rate, leaf(3, 2), leaf(3, 2), None, start, None, 0.5, False, True,
        ),
        "convolution.short_convolution": (x, weight, bias, state, cu, True),
        "convolution.short_convolution, bare": (leaf(2, 5, 3), weight, None, state, None, False),
        "matrix.operators.matrix_scan": (
            q, k, v, g, None, None, None, strength, strength, leaf(2, 2, 16, 8), cu, *options,
        ),
        "matrix.operators.matrix_scan, bare": (
            q, k, v, None, a, k, leaf(2, 16), None, None, leaf(1, 2, 16, 8), None, *options,
        ),
        "norm.gated_rms_norm": (leaf(4, 6), leaf(6), leaf(4, 6), 1e-5, "silu", True, 2),
        "norm.gated_rms_norm, bare": (leaf(4, 6), leaf(6), None, 1e-5, "silu", False, 1),
    }  # fmt: skip


def operator(name: str) -> Any:
    module, function = name.split(",")[0].rsplit(".", 1)
    return getattr(importlib.import_module(f"linrec.kernels.{module}"), function)


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("name", arguments("cpu"))
def test_opcheck(device: str, name: str) -> None:
    torch.library.opcheck(operator(name), arguments(device)[name], test_utils=CHECKS)


@pytest.mark.parametrize("name", arguments("cpu"))
def test_a_gradient_of_a_gradient_is_refused(device: str, name: str) -> None:
    """The gradient with a graph is the one without; what would need the derivative of a kernel says what has one."""
    given = arguments(device)[name]
    if "matrix_scan" in name:
        given = (*given[:-1], True)
    leaves = list({id(x): x for x in given if isinstance(x, Tensor) and x.requires_grad}.values())
    result = operator(name)(*given)
    loss = (result if isinstance(result, Tensor) else result[0]).square().sum()
    want = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    got = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
    known = [(a, b) for a, b in zip(got, want, strict=True) if b is not None]
    assert known and all(torch.equal(a, b) for a, b in known)
    with pytest.raises(BackendError, match="first derivatives only"):
        torch.autograd.grad(known[0][0].sum(), leaves, allow_unused=True)


def test_opcheck_of_the_step_in_place(device: str) -> None:
    x, weight, state = (torch.randn(s, device=device) for s in ((2, 1, 3), (3, 4), (2, 3, 3)))
    step = operator("convolution.short_convolution_step_")
    torch.library.opcheck(step, (x, weight, None, state, True), test_utils=CHECKS[:3])


def test_opcheck_of_the_token_in_place(device: str) -> None:
    q, v, g, state = (
        torch.rand(s, device=device) for s in ((2, 1, 1, 16), (2, 1, 2, 8), (2, 1, 2), (2, 2, 16, 8))
    )
    arguments = (
        q,
        q,
        v,
        -g,
        None,
        None,
        None,
        g,
        g,
        state,
        None,
        0.5,
        None,
        "decayed",
        "post",
        torch.float32,
    )
    torch.library.opcheck(operator("matrix.operators.matrix_step_"), arguments, test_utils=CHECKS[:3])


class Model(torch.nn.Module):
    """A rule of each engine, with its parameters."""

    def forward(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, weight: Tensor) -> Tensor:
        y, _ = rules.canon(x, weight, backend="triton")
        y, _ = rules.mamba(y, dt, A, B, B, backend="triton")
        y, _ = rules.hgrn(y, -dt, backend="triton")
        q, k = B[:, :, None], F.normalize(B, dim=-1)[:, :, None]
        return rules.gated_delta_net(
            q, k, y[:, :, None], -dt[..., :1], dt[..., 1:2].sigmoid(), backend="triton"
        ).o


def model_inputs(device: str) -> tuple[Tensor, ...]:
    made = example_inputs(rules.mamba, T=9, D=3, N=2, device=device, dtype=torch.float32)
    weight = torch.randn(3, 4, device=device)
    return (*(made[n] for n in ("x", "dt", "A", "B")), weight)


NAMES = ("short_convolution", "selective_scan", "diagonal_scan", "matrix_scan")


def test_export(device: str) -> None:
    inputs = model_inputs(device)
    program = torch.export.export(Model(), inputs)
    calls = [str(node.target) for node in program.graph.nodes if "linrec" in str(node.target)]
    assert [call.split(".")[1] for call in calls] == list(NAMES)
    assert torch.equal(program.module()(*inputs), Model()(*inputs))


def test_compile(device: str) -> None:
    """One graph, forward and backward, with the same numbers."""
    inputs = [x.requires_grad_() for x in model_inputs(device)]
    want = torch.autograd.grad(Model()(*inputs).square().sum(), inputs)
    compiled = torch.compile(Model(), fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
