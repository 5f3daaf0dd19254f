"""The elementwise kernels compile for every target and spill nothing on those that must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from linrec.evals.kernels.capture import recording  # noqa: E402
from linrec.evals.kernels.machine_code import measure  # noqa: E402
from linrec.evals.kernels.targets import CHECKED, GPUS  # noqa: E402


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def wide(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.float32)


def real_scan() -> None:
    from linrec.kernels import diagonal

    a, x, start = meta(4, 4096, 2048), meta(4, 4096, 2048), wide(4, 2048)
    h, last = diagonal.forward(a, x, start, None, True, False)
    diagonal.backward(h, last, a, h, start, None, True, False, True)


def complex_scan() -> None:
    from linrec.kernels import diagonal

    a, x, start = wide(1, 1, 1024, 2), wide(4, 4096, 1024, 2), wide(4, 1024, 2)
    h, last = diagonal.forward(a, x, start, None, False, False)
    diagonal.backward(h, last, a, h, start, None, False, False, True)


def selective(states: int, by_token: bool) -> None:
    from linrec.kernels import selective

    u, b, skip, start = meta(4, 4096, 2048), meta(4, 4096, states), wide(2048), wide(4, 2048, states)
    rate = b if by_token else wide(2048, states)
    args = (u, u, rate, b, b, skip)
    y, last, kept = selective.forward(*args, start, None, 1.0, not by_token, True)
    selective.backward(y, last, *args, kept, None, 1.0, not by_token)


def selective_without_step() -> None:
    """Nor a skip: the kernels get None in their place."""
    from linrec.kernels import selective

    u, rate, b, start = meta(4, 4096, 2048), wide(2048, 16), meta(4, 4096, 16), wide(4, 2048, 16)
    args = (None, u, rate, b, b, None)
    y, last, kept = selective.forward(*args, start, None, 1.0, True, True)
    selective.backward(y, last, *args, kept, None, 1.0, True)


def convolution() -> None:
    from linrec.kernels import convolution

    x, state, cu = meta(1, 4096, 2048), meta(4, 3, 2048), meta(5, dtype=torch.int64)
    args = (x, wide(2048, 4), wide(2048), state, cu, True)
    convolution.backward(convolution.forward(*args), *args)
    convolution.step(meta(4, 1, 2048), wide(2048, 4), wide(2048), state, True)


def norm(width: int, first: bool, groups: int) -> None:
    from linrec.kernels import norm

    args = (meta(4096, width), wide(width), meta(4096, width), 1e-5, "silu", first, groups)
    norm.backward(norm.forward(*args), *args)


CASES: dict[str, Any] = {
    "scan": real_scan,
    "complex scan": complex_scan,
    "selective scan of 16 states": lambda: selective(16, False),
    "selective scan of 16 states, all by token": lambda: selective(16, True),
    "selective scan of 64 states": lambda: selective(64, False),
    "selective scan without a step": selective_without_step,
    "convolution": convolution,
    "norm of heads": lambda: norm(128, False, 1),
    "norm of all channels": lambda: norm(8192, True, 1),
    "norm of groups": lambda: norm(2048, True, 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_resources(case: str) -> None:
    with recording() as found:
        CASES[case]()
    assert len(found.launches) >= 2
    for name in CHECKED:
        for launch in found.launches:
            problems = measure(launch, GPUS[name]).problems(allow_spills=name == "sm_100")
            assert not problems, (name, launch.name, launch.config, problems)
