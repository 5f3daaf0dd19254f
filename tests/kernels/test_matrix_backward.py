"""The backward kernels of the matrix engine against the torch engine in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from linrec.engines.matrix import MATRIX, MatrixTerms  # noqa: E402
from linrec.kernels.matrix.backward import matrix_backward  # noqa: E402
from linrec.rule import Call  # noqa: E402

NAMES = ("q", "k", "v", "g", "a", "b", "bonus", "write", "erase")
SCALE = 0.4

# name: (B, T, H, HV, K, V, which arguments, options)
CASES = {
    "additive": (2, 35, 1, 1, 20, 8, "g", {}),
    "additive without decay": (1, 16, 1, 1, 16, 16, "", {}),
    "additive, short": (1, 5, 2, 2, 16, 24, "g write state", {}),
    "delta": (1, 35, 1, 1, 20, 24, "g write erase state", {"predict": "decayed"}),
    "delta, grouped": (1, 20, 1, 2, 16, 16, "g write erase", {"predict": "decayed"}),
    "delta, undecayed": (1, 20, 1, 1, 16, 16, "g write erase state", {}),
    "delta with its own key": (1, 20, 1, 1, 16, 16, "g a state", {"predict": "decayed"}),
    "delta, packed": (1, 41, 1, 1, 16, 16, "g write erase state packed", {"predict": "decayed"}),
    "channel, additive": (1, 35, 1, 1, 20, 8, "G state", {}),
    "channel, delta": (1, 35, 1, 1, 20, 24, "G write erase state", {"predict": "decayed"}),
    "channel, packed": (1, 41, 1, 1, 16, 16, "G write erase packed", {"predict": "decayed"}),
    "general": (1, 35, 1, 1, 16, 24, "G a b state", {}),
    "general, one decay": (1, 20, 1, 2, 16, 16, "g a b", {"predict": "decayed"}),
    "read before write": (1, 35, 1, 1, 20, 8, "G bonus state", {"readout": "pre"}),
    "read before write, grouped": (1, 20, 1, 2, 16, 8, "g bonus write state", {"readout": "pre"}),
    "delta, read before write": (1, 20, 1, 1, 16, 8, "G bonus write erase", {"readout": "pre"}),
}
BOUNDS = [0, 3, 3, 21, 37, 41]


def draw(case: str, device: str, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    """Arguments of :func:`matrix_backward` by name, leaves of what the reference differentiates."""
    batch, length, h, hv, k, v, which, _ = CASES[case]
    given = which.split()
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def unit(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(normal(*shape), dim=-1)

    rows = len(BOUNDS) - 1 if "packed" in given else batch
    x: dict[str, Tensor] = {"q": normal(batch, length, h, k), "k": unit(batch, length, h, k)}
    x["v"] = normal(batch, length, hv, v)
    low = {n: t.to(dtype) for n, t in x.items()}
    if "g" in given or "G" in given:
        low["g"] = -torch.nn.functional.softplus(normal(batch, length, hv, *([k] if "G" in given else [])))
    for name, heads in (("a", h), ("b", hv)):
        if name in given:
            low[name] = -unit(batch, length, heads, k).to(dtype) * (0.7 if name == "a" else -0.7)
    for name in ("write", "erase"):
        if name in given:
            low[name] = 2 * torch.rand(batch, length, hv, generator=generator)
    if "bonus" in given:
        low["bonus"] = normal(hv, k)
    if "state" in given:
        low["state"] = normal(rows, hv, k, v)
    low["do"] = normal(batch, length, hv, v).to(dtype)
    low["dlast"] = normal(rows, hv, k, v)
    return {n: t.to(device) for n, t in low.items()}


def reference(x: dict[str, Tensor], options: dict[str, str], bounds: list[int] | None) -> dict[str, Tensor]:
    """Gradients by autograd through the torch engine in float64."""
    exact: dict[str, Any] = {n: t.double().requires_grad_(n not in ("do", "dlast")) for n, t in x.items()}
    fields: dict[str, Any] = {n: t for n, t in exact.items() if n in NAMES} | options
    terms = MatrixTerms(**fields)
    call = Call("parallel" if bounds is None else "chunkwise", SCALE, bounds, 16, "torch")
    o, last = MATRIX.run(terms, exact.get("state"), call, "test")
    leaves = [n for n, t in exact.items() if t.requires_grad]
    found = torch.autograd.grad(
        [o, last], [exact[n] for n in leaves], [exact["do"], exact["dlast"]], allow_unused=True
    )
    return {n: torch.zeros_like(exact[n]) if d is None else d for n, d in zip(leaves, found, strict=True)}


def backward(
    x: dict[str, Tensor], options: dict[str, str], bounds: list[int] | None, chunk: int = 16
) -> dict[str, Tensor]:
    packed = None if bounds is None else torch.tensor(bounds, device=x["v"].device, dtype=torch.int32)
    fields: dict[str, Any] = {n: t for n, t in x.items() if n in NAMES} | options
    terms = MatrixTerms(**fields)
    arguments: list[Any] = [x["do"], x["dlast"], *(x.get(n) for n in NAMES), x.get("state"), packed]
    arguments += [SCALE, chunk, terms.predict, terms.readout]
    found = matrix_backward(*arguments)
    assert [d is None for d in found[:-1]] == [n not in x for n in NAMES]
    return {n: d for n, d in zip((*NAMES, "state"), found, strict=True) if d is not None}


def assert_close(found: dict[str, Tensor], exact: dict[str, Tensor], bound: float) -> None:
    for name, expected in exact.items():
        error = (found[name].double() - expected).norm() / (expected.norm() + 1e-30)
        assert found[name].dtype != torch.float64 and error < bound, f"d{name}: relative error {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_gradient(device: str, case: str, dtype: torch.dtype) -> None:
    x = draw(case, device, dtype)
    bounds = BOUNDS if "packed" in CASES[case][6] else None
    options = CASES[case][7]
    bound = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    assert_close(backward(x, options, bounds), reference(x, options, bounds), bound)
