"""The backward kernels of the matrix engine against the torch engine in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from linrec.engines.matrix import MATRIX  # noqa: E402
from linrec.kernels.matrix.backward import matrix_backward  # noqa: E402
from linrec.kernels.matrix.prepare import Inputs  # noqa: E402
from linrec.rule import Call  # noqa: E402
from linrec.testing import relative_error  # noqa: E402
from tests.kernels.matrix_cases import CASES, NAMES, SCALE, bounds_of, draw, terms_of  # noqa: E402


def reference(
    case: str, x: dict[str, Tensor], dtype: torch.dtype = torch.float64, form: str = "parallel"
) -> dict[str, Tensor]:
    """Gradients by autograd through the torch engine."""
    exact: dict[str, Any] = {n: t.detach().to(dtype) for n, t in x.items()}
    exact = {n: t.clone().requires_grad_(n not in ("do", "dlast")) for n, t in exact.items()}
    bounds = bounds_of(case)
    call = Call(form if bounds is None else "chunkwise", SCALE, bounds, 16, "torch")
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
    given: dict[str, Any] = {n: x.get(n) for n in (*NAMES, "state")} | {"cu_seqlens": packed}
    inputs = Inputs(**given, scale=SCALE, chunk=chunk, predict=terms.predict, readout=terms.readout)
    found = matrix_backward(x["do"], x["dlast"], inputs)
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


def rounded(x: dict[str, Tensor], seed: int, units: int = 1) -> dict[str, Tensor]:
    """Every number up, down, or as it is, by some units in its last place."""
    generator = torch.Generator().manual_seed(seed)

    def moved(t: Tensor) -> Tensor:
        steps = torch.randint(-1, 2, t.shape, generator=generator).to(t.device)
        return (t * (1 + 2**-23 * units * steps)).float()

    return {n: moved(t) for n, t in x.items()}


def budget_of_float32(case: str, x: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Twice what float32 loses, and a rounding: the largest error of ten runs of the torch engine in float32.

    Two forms, each for the tensors as they are and as they might have been rounded as well.
    """
    runs = [
        reference(case, rounded(x, seed, units=min(seed, 1)), torch.float32, form)
        for seed in range(5)
        for form in ("parallel", "chunkwise")
    ]
    return {n: 2 * max(relative_error(run[n], exact[n]) for run in runs) + 2**-23 for n in exact}


ADVERSARIAL = ["additive", "delta", "channel, delta", "general", "read before write"]


@pytest.mark.parametrize("kind", ["equal keys", "resets", "keys of zero"])
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_adversarial_inputs(device: str, case: str, kind: str) -> None:
    """No more than twice the error of the torch engine in float32."""
    x = adversarial(case, device, kind)
    exact = reference(case, x)
    allowed = budget_of_float32(case, x, exact)
    for name, found in backward(case, x).items():
        error = relative_error(found, exact[name])
        assert error < allowed[name], f"d{name}: relative error {error:.1e}, allowed {allowed[name]:.1e}"


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_the_budget_is_not_for_three_digits_less(case: str) -> None:
    """The exact gradients of tensors with three digits less are outside."""
    for kind in ("equal keys", "resets", "keys of zero"):
        x = adversarial(case, "cpu", kind)
        exact = reference(case, x)
        allowed = budget_of_float32(case, x, exact)
        coarse = reference(case, rounded(x, 0, units=1000))
        for name, found in coarse.items():
            assert relative_error(found, exact[name]) > allowed[name], f"d{name}, {kind}"


@pytest.mark.parametrize("length", [1, 15, 16, 17, 48, 64, 65, 97])
def test_lengths_around_chunks_and_groups(device: str, length: int) -> None:
    """The backward keeps states for groups of four chunks of 16: full and ragged ones, and chunks."""
    for case in ("delta", "general", "read before write"):
        x = draw(case, device, torch.float32, length=length)
        assert_close(backward(case, x), reference(case, x), 1e-5)
