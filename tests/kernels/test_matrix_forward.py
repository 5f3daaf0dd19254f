"""The forward kernels of the matrix engine against the torch engine in float64, and the engine's use of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from linrec.engines.matrix import MATRIX  # noqa: E402
from linrec.errors import BackendError  # noqa: E402
from linrec.kernels.matrix import operators, prepare  # noqa: E402
from linrec.rule import Call, donation  # noqa: E402
from linrec.rules import RULES  # noqa: E402
from linrec.testing import budget, example_inputs, example_state, relative_error  # noqa: E402
from tests.kernels.matrix_cases import CASES, SCALE, bounds_of, draw, terms_of  # noqa: E402

BOUND = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def run(case: str, x: dict[str, Tensor], backend: str, form: str = "chunkwise") -> tuple[Tensor, Tensor]:
    call = Call(form, SCALE, bounds_of(case), 16, backend)
    return MATRIX.run(terms_of(case, x), x.get("state"), call, "test")


def assert_close(found: tuple[Tensor, ...], exact: tuple[Tensor, ...], bound: float) -> None:
    for name, a, b in zip(("o", "state"), found, exact, strict=True):
        assert a.dtype != torch.float64 and a.shape == b.shape
        assert relative_error(a, b) < bound, f"{name}: {relative_error(a, b):.1e}"


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_forward(device: str, case: str, dtype: torch.dtype) -> None:
    x = draw(case, device, dtype)
    exact = run(case, {n: t.double() for n, t in x.items()}, "torch", "recurrent")
    assert_close(run(case, x, "triton"), exact, BOUND[dtype])


@pytest.mark.parametrize("case", ["delta", "channel, delta"])
def test_full_resets(device: str, case: str) -> None:
    """The engine bounds what the kernels subtract, a decay a head, and leaves to them what they only add."""
    x = draw(case, device, torch.float32)
    x["g"][:, [0, 1, 15, 16, -1]] = -torch.inf
    exact = run(case, {n: t.double() for n, t in x.items()}, "torch", "recurrent")
    assert_close(run(case, x, "triton"), exact, BOUND[torch.float32])


@pytest.mark.parametrize("case", [c for c in CASES if bounds_of(c) is None])
def test_one_token(device: str, case: str) -> None:
    """The decode kernel, with a new state and over the old one."""
    x = {
        n: t[:, :1] if t.dim() > 2 and n not in ("state", "bonus", "dlast") else t
        for n, t in draw(case, device, torch.float32).items()
    }
    state = x.setdefault("state", x["dlast"])
    exact = run(case, {n: t.double() for n, t in x.items()}, "torch", "step")
    before = state.clone()
    assert_close(run(case, x, "triton", "step"), exact, BOUND[torch.float32])
    assert torch.equal(state, before)
    with donation():
        _, last = run(case, x, "triton", "step")
    assert last.data_ptr() == state.data_ptr() and not torch.equal(state, before)


@pytest.mark.parametrize("case", ["additive", "delta", "channel, delta", "general"])
def test_segments_of_time(device: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is cut in time gives what it gives in one piece."""
    x = draw(case, device, torch.float32)
    exact = run(case, {n: t.double() for n, t in x.items()}, "torch", "recurrent")
    launched: list[str] = []
    plain = prepare.run

    def counted(kernel: Any, *rest: Any) -> None:
        launched.append(kernel.__name__)
        plain(kernel, *rest)

    monkeypatch.setattr(operators, "LEAST", 1)
    monkeypatch.setattr(operators, "run", counted)
    assert_close(run(case, x, "triton"), exact, BOUND[torch.float32])
    assert launched == ["segment_maps", "entry_of_segments", "forward_scan"]


@pytest.mark.parametrize("name", sorted(n for n, r in RULES.items() if r.engine is MATRIX))
def test_every_rule_forward_and_backward(device: str, name: str) -> None:
    """Grouped value heads, an initial state and its gradient, a length that is no multiple of the chunk."""
    rule = RULES[name]
    inputs = example_inputs(rule, B=1, T=21, H=1, HV=2, K=8, V=16, dtype=torch.float32, device=device)
    state = example_state(rule, inputs)
    exact = gradients(rule, {n: t.double() for n, t in inputs.items()}, state.double(), "torch")
    found = gradients(rule, inputs, state, "triton")
    torch_error = [
        relative_error(a, b) for a, b in zip(gradients(rule, inputs, state, "torch"), exact, strict=True)
    ]
    for error, a, b in zip(torch_error, found, exact, strict=True):
        assert relative_error(a, b) < 2 * error + 1e-5


def gradients(rule: Any, inputs: dict[str, Tensor], state: Tensor, backend: str) -> list[Tensor]:
    """Outputs and all gradients."""
    leaves = {n: t.detach().clone().requires_grad_(t.is_floating_point()) for n, t in inputs.items()}
    state = state.detach().clone().requires_grad_()
    o, last = rule.chunkwise(**leaves, state=state, backend=backend, chunk_size=16)
    wanted = [*(t for t in leaves.values() if t.requires_grad), state]
    weight = torch.linspace(-1, 1, o.numel(), device=o.device, dtype=o.dtype).view_as(o)
    found = torch.autograd.grad((o * weight).sum() + last.sum(), wanted, allow_unused=True)
    return [o.detach(), last.detach(), *(d for d in found if d is not None)]


def test_lower_precision_stays_in_budget(device: str) -> None:
    rule = RULES["gated_delta_net"]
    exact = example_inputs(rule, B=1, T=40, H=1, HV=1, K=16, V=16, dtype=torch.float32, device=device)
    low = {n: t.to(torch.bfloat16) for n, t in exact.items()}
    reference = rule(**{n: t.double() for n, t in low.items()}).o
    found = rule(**low, backend="triton", chunk_size=16).o
    assert found.dtype == torch.bfloat16
    assert relative_error(found, reference) < budget(
        rule(**low, backend="torch").o, reference, torch.bfloat16
    )


@pytest.mark.parametrize("strength", [1e-3, 50.0, 400.0])
def test_strong_and_weak_decays(device: str, strength: float) -> None:
    """Decays that underflow, side by side with hardly any, for a head and for a channel."""
    for case in ("delta", "channel, delta"):
        x = draw(case, device, torch.float32)
        x["g"] = torch.where(x["g"] < x["g"].median(), strength * x["g"], 1e-4 * x["g"])
        exact = run(case, {n: t.double() for n, t in x.items()}, "torch", "recurrent")
        assert_close(run(case, x, "triton"), exact, 1e-5)


def test_no_tokens(device: str) -> None:
    x = {
        n: t[:, :0] if t.dim() > 2 and n not in ("state", "dlast") else t
        for n, t in draw("delta", device, torch.float32).items()
    }
    o, last = run("delta", x, "triton")
    assert o.shape[1] == 0 and torch.equal(last, x["state"])


def test_too_wide_for_the_kernels(device: str) -> None:
    inputs = example_inputs(
        RULES["delta_net"], B=1, T=2, H=1, HV=1, K=272, V=8, dtype=torch.float32, device=device
    )
    with pytest.raises(BackendError, match="up to 256, got K = 272"):
        RULES["delta_net"](**inputs, backend="triton")
