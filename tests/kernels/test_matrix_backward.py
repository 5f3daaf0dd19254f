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


def reference(case: str, x: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Gradients by autograd through the torch engine."""
    exact: dict[str, Any] = {n: t.detach().to(dtype) for n, t in x.items()}
    exact = {n: t.clone().requires_grad_(n not in ("do", "dlast")) for n, t in exact.items()}
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


def adversarial(case: str, device: str, kind: str) -> dict[str, Tensor]:
    """A case's tensors, made hard: every key alike and strengths near two, resets, keys of zero."""
    x = draw(case, device, torch.float32)
    if kind == "equal keys":
        x["k"] = x["k"][:, :1].expand_as(x["k"]).contiguous()
        x |= {n: 1.9 + 0.1 * (x[n] > 1).float() for n in ("write", "erase") if n in x}
        x["g"] = 1e-3 * x["g"]
    elif kind == "resets":
        x["g"] = torch.where(x["g"] < x["g"].quantile(0.1), -400.0, x["g"])
    else:
        x["k"] = torch.where(torch.arange(x["k"].shape[1], device=device)[:, None, None] % 3 > 0, 0.0, x["k"])
    return x


@pytest.mark.parametrize("kind", ["equal keys", "resets", "keys of zero"])
@pytest.mark.parametrize("case", ["additive", "delta", "channel, delta", "general", "read before write"])
def test_adversarial_inputs(device: str, case: str, kind: str) -> None:
    """No more than twice the error of the torch engine in float32."""
    x = adversarial(case, device, kind)
    exact, rough = reference(case, x), reference(case, x, torch.float32)
    for name, found in backward(case, x).items():
        size = exact[name].norm() + 1e-30
        allowed = 2 * (rough[name].double() - exact[name]).norm() / size + 1e-5
        error = (found.double() - exact[name]).norm() / size
        assert error < allowed, f"d{name}: relative error {error:.1e}, torch {allowed / 2:.1e}"


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33, 48])
def test_lengths_around_chunks_and_pairs(device: str, length: int) -> None:
    """The backward keeps states for pairs of chunks: odd and even numbers of chunks, full and ragged."""
    for case in ("delta", "general", "read before write"):
        whole = draw(case, device, torch.float32)
        x = {n: t if n in ("state", "dlast", "bonus") else t[:, :length] for n, t in whole.items()}
        assert_close(backward(case, x), reference(case, x), 1e-5)
