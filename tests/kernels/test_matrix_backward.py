"""The backward kernels of the matrix engine against the torch engine in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from linrec.engines.matrix import MATRIX  # noqa: E402
from linrec.kernels.matrix.backward import matrix_backward  # noqa: E402
from linrec.rule import Call  # noqa: E402
from tests.kernels.matrix_cases import CASES, NAMES, SCALE, bounds_of, draw, terms_of  # noqa: E402


def reference(case: str, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by autograd through the torch engine in float64."""
    exact: dict[str, Any] = {n: t.double().requires_grad_(n not in ("do", "dlast")) for n, t in x.items()}
    bounds = bounds_of(case)
    call = Call("parallel" if bounds is None else "chunkwise", SCALE, bounds, 16, "torch")
    o, last = MATRIX.run(terms_of(case, exact), exact.get("state"), call, "test")
    leaves = [n for n, t in exact.items() if t.requires_grad]
    found = torch.autograd.grad(
        [o, last], [exact[n] for n in leaves], [exact["do"], exact["dlast"]], allow_unused=True
    )
    return {n: torch.zeros_like(exact[n]) if d is None else d for n, d in zip(leaves, found, strict=True)}


def backward(case: str, x: dict[str, Tensor], chunk: int = 16) -> dict[str, Tensor]:
    bounds = bounds_of(case)
    packed = None if bounds is None else torch.tensor(bounds, device=x["v"].device, dtype=torch.int32)
    terms = terms_of(case, x)
    arguments: list[Any] = [x["do"], x["dlast"], *(x.get(n) for n in NAMES), x.get("state"), packed]
    arguments += [SCALE, chunk, terms.predict, terms.readout]
    found = matrix_backward(*arguments)
    assert [d is None for d in found] == [n not in x for n in (*NAMES, "state")]
    return {n: d for n, d in zip((*NAMES, "state"), found, strict=True) if d is not None}


def assert_close(found: dict[str, Tensor], exact: dict[str, Tensor], bound: float) -> None:
    for name, expected in exact.items():
        error = (found[name].double() - expected).norm() / (expected.norm() + 1e-30)
        assert found[name].dtype != torch.float64 and error < bound, f"d{name}: relative error {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_gradient(device: str, case: str, dtype: torch.dtype) -> None:
    x = draw(case, device, dtype)
    bound = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    assert_close(backward(case, x), reference(case, x), bound)
