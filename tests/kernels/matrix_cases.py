"""What the kernels of the matrix engine are tested on: shapes, which arguments are given, options; drawn by a seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linrec.engines.matrix import MatrixTerms

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


def draw(
    case: str, device: str, dtype: torch.dtype, seed: int = 0, length: int | None = None
) -> dict[str, Any]:
    """Tensors by name, with gradients of both outputs; tokens in ``dtype``, gates and states in float32."""
    batch, tokens, h, hv, k, v, which, _ = CASES[case]
    length = length or tokens
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


def bounds_of(case: str) -> list[int] | None:
    """Where the segments of a packed case start and end."""
    return BOUNDS if "packed" in CASES[case][6] else None


def terms_of(case: str, x: dict[str, Tensor]) -> MatrixTerms:
    """The engine's terms of what was drawn."""
    fields: dict[str, Any] = {n: t for n, t in x.items() if n in NAMES} | CASES[case][7]
    return MatrixTerms(**fields)
