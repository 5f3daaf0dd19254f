"""Rules of the diagonal, WKV and convolution engines through Triton, against the torch backend in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from linrec import rules
from linrec.engines.diagonal import DIAGONAL, DiagonalTerms
from linrec.errors import BackendError
from linrec.rule import RULES, Call
from linrec.state import named_tensors
from linrec.testing import budget, example_inputs, example_state, relative_error

ELEMENTWISE = [n for n, r in sorted(RULES.items()) if r.engine.name in ("diagonal", "wkv", "convolution")]
SPANS = {"batch": None, "packed": [0, 5, 5, 6, 23]}


def weighted(x: Tensor) -> Tensor:
    """A sum to which no two numbers contribute alike."""
    return (x.double() * torch.linspace(-1, 2, x.numel(), device=x.device).view(x.shape)).sum()


def results(
    rule: Any, inputs: dict[str, Tensor], state: Any, backend: str, **options: Any
) -> dict[str, Tensor]:
    """The output, the final state and every gradient, those of the state included."""
    leaves = {n: x.detach().clone().requires_grad_() for n, x in inputs.items()}
    before = {p: x.detach().clone().requires_grad_() for p, x in named_tensors(state)}
    given = type(state)(**before) if isinstance(state, tuple) else before[""]
    out = rule(**leaves, state=given, backend=backend, **options)
    after = dict(named_tensors(out.state))
    loss = torch.stack([weighted(x) for x in (out.o, *after.values())]).sum()
    tensors = [*leaves.values(), *before.values()]
    grads = torch.autograd.grad(loss, tensors, allow_unused=True)
    names = [*leaves, *(f"state {p}" for p in before)]
    found = {
        f"d {n}": torch.zeros_like(x) if g is None else g
        for n, x, g in zip(names, tensors, grads, strict=True)
    }
    return {"o": out.o, **{f"last {p}": x for p, x in after.items()}, **found}


def check(rule: Any, inputs: dict[str, Tensor], state: Any, dtype: torch.dtype, **options: Any) -> None:
    """Triton in ``dtype`` is off by no more than twice what torch in the same precision is, and a rounding.

    Whichever of torch's forms is furthest off counts: each orders the same sums in another way, as the kernel does.
    """
    cast = {n: x.to(dtype) for n, x in inputs.items()}
    exact = {n: x.double() for n, x in cast.items()}
    low = type(state)(*(x.float() for x in state)) if isinstance(state, tuple) else state.float()
    want = results(rule, exact, state, "torch", **options)
    forms = (rule.form(name) for name in ("chunkwise", "recurrent"))
    plain = [results(form, cast, low, "torch", **options) for form in forms]
    got = results(rule, cast, low, "triton", **options)
    assert got.keys() == want.keys()
    for name, value in got.items():
        assert value.dtype == plain[0][name].dtype and value.isfinite().all(), name
        # small tensors have few roundings to average over
        largest = max(budget(x[name], want[name], value.dtype) for x in plain)
        allowed = largest + 3 * torch.finfo(value.dtype).eps
        assert relative_error(value, want[name]) <= allowed, name


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_rule(device: str, name: str, span: str) -> None:
    rule, bounds = rules.get_rule(name), SPANS[span]
    inputs = example_inputs(rule, T=23, B=1 if bounds else 2, device=device, N=5)
    state = example_state(rule, inputs, segments=len(bounds) - 1 if bounds else None)
    cu = None if bounds is None else torch.tensor(bounds, device=device)
    check(rule, inputs, state, torch.float32, cu_seqlens=cu, scale=0.7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["mamba", "longhorn", "rg_lru", "canon"])
def test_low_precision(device: str, name: str, dtype: torch.dtype) -> None:
    rule = rules.get_rule(name)
    inputs = example_inputs(rule, T=19, device=device, N=4)
    check(rule, inputs, example_state(rule, inputs), dtype)


@pytest.mark.parametrize("length", [0, 1, 16, 33])
@pytest.mark.parametrize("name", ["mamba", "hgrn", "lru", "rwkv4", "token_shift"])
def test_lengths(device: str, name: str, length: int) -> None:
    rule = rules.get_rule(name)
    inputs = example_inputs(rule, T=length, device=device, N=17, D=3)
    example = example_inputs(rule, T=3, device=device, N=17, D=3)
    check(rule, inputs, example_state(rule, example), torch.float32)


@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent"])
def test_every_form_takes_the_kernel(device: str, form: str) -> None:
    """The numbers of s4d's parallel form are a convolution's with torch, a scan's with Triton."""
    inputs = example_inputs(rules.s4d, T=40, device=device)
    want = rules.s4d.form(form)(**inputs, backend="torch")
    got = rules.s4d.form(form)(**{n: x.float() for n, x in inputs.items()}, backend="triton", chunk_size=16)
    assert relative_error(got.o, want.o) < 2e-6 and relative_error(got.state, want.state) < 2e-6


ADVERSARIAL = {
    "g = 0": torch.zeros_like,
    "g = -400": lambda g: torch.full_like(g, -400.0),
    "resets among weak decays": lambda g: torch.where(torch.rand_like(g) < 0.2, -400.0, g / 50),
}


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_adversarial_decays(device: str, case: str) -> None:
    inputs = example_inputs(rules.hgrn, T=40, device=device)
    inputs["g"] = ADVERSARIAL[case](inputs["g"])
    check(rules.hgrn, inputs, example_state(rules.hgrn, inputs), torch.float32)


def general_terms(a: Tensor, x: Tensor, late: bool) -> DiagonalTerms:
    if not a.is_complex():
        return DiagonalTerms(
            {"a": a, "x": x}, lambda t: (t["a"], t["x"]), channels=(3,), log=False, late=late
        )
    tokens = {"a_re": a.real, "a_im": a.imag, "x_re": x.real, "x_im": x.imag}
    return DiagonalTerms(
        tokens,
        lambda t: (torch.complex(t["a_re"], t["a_im"]), torch.complex(t["x_re"], t["x_im"])),
        channels=(3,),
        read=lambda t, h: torch.view_as_real(h).flatten(-2),
        log=False,
        complex=True,
        late=late,
    )


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["any sign", "zeros", "growing", "complex"])
def test_any_decay(device: str, kind: str, late: bool) -> None:
    """Negative, zero, above one, complex: segments of every kind, forward and gradients."""
    bounds = [0, 5, 5, 21]
    a = torch.randn(1, 21, 3, dtype=torch.complex64 if kind == "complex" else torch.float32, device=device)
    a = torch.where(torch.rand(1, 21, 3, device=device) < 0.3, 0.0, a) if kind == "zeros" else a
    a = 1 + a.abs() / 50 if kind == "growing" else a
    x = torch.randn_like(a)
    state = torch.randn(3, 3, *([2] if a.is_complex() else []), device=device)

    def run(wide: bool, backend: str) -> list[Tensor]:
        leaves = [
            x.to(torch.promote_types(x.dtype, torch.float64)) if wide else x.clone() for x in (a, x, state)
        ]
        leaves = [x.requires_grad_() for x in leaves]
        terms = general_terms(leaves[0], leaves[1], late)
        o, last = DIAGONAL.run(terms, leaves[2], Call("chunkwise", 0.7, bounds, None, backend), "test")
        loss = o.square().sum() + (last * torch.arange(last.numel(), device=device).view(last.shape)).sum()
        return [o, last, *torch.autograd.grad(loss, leaves)]

    for got, plain, want in zip(run(False, "triton"), run(False, "torch"), run(True, "torch"), strict=True):
        got, plain, want = (torch.view_as_real(y) if y.is_complex() else y for y in (got, plain, want))
        assert relative_error(got, want) <= budget(plain, want, torch.float32) + 5e-7


def test_segments_do_not_see_each_other(device: str) -> None:
    inputs = {n: x.float() for n, x in example_inputs(rules.mamba, T=37, B=1, device=device).items()}
    bounds = [0, 1, 18, 18, 37]
    packed = rules.mamba(**inputs, cu_seqlens=torch.tensor(bounds, device=device), backend="triton")
    for number, (i, j) in enumerate(itertools.pairwise(bounds)):
        part = {n: x[:, i:j] if n in ("x", "dt", "B", "C") else x for n, x in inputs.items()}
        alone = rules.mamba(**part, backend="triton")
        assert torch.equal(packed.o[:, i:j], alone.o) and torch.equal(packed.state[number], alone.state[0])


@pytest.mark.parametrize("bounds", [None, [0, 5, 5, 9]], ids=["batch", "packed"])
def test_gradients_of_one_output_alone(device: str, bounds: list[int] | None) -> None:
    """Where a loss does not use an output, its gradient is zero and no tensor of zeros is made of it beforehand."""
    inputs = {n: x.float() for n, x in example_inputs(rules.mamba, T=9, B=1, device=device).items()}
    ends = None if bounds is None else torch.tensor(bounds, device=device)

    def gradients(used: tuple[int, int], backend: str) -> list[Tensor]:
        leaves = {n: x.clone().requires_grad_() for n, x in inputs.items()}
        out = rules.mamba(**leaves, cu_seqlens=ends, backend=backend)
        loss = sum(x.square().sum() for x, here in zip(out[:2], used, strict=True) if here)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs.values(), found, strict=True)]

    for used in ((1, 0), (0, 1)):
        for got, want in zip(gradients(used, "triton"), gradients(used, "torch"), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_nothing_of_all_states_exists(device: str) -> None:
    """What autograd keeps of a selective scan: its arguments, and the states at every 16th token."""
    inputs = {
        n: x.float().requires_grad_()
        for n, x in example_inputs(rules.mamba, T=64, device=device, N=8).items()
    }
    kept: list[int] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = rules.mamba(**inputs, backend="triton")
    states = out.state.numel()
    assert sum(kept) == sum(x.numel() for x in inputs.values()) + states * 64 // 16
    assert max(kept) <= max(states * 64 // 16, *(x.numel() for x in inputs.values()))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("mamba", lambda x: x.double(), "the inputs are float64"),
        ("canon", lambda x: x.double(), "the inputs are float64"),
    ],
)
def test_refusals(device: str, name: str, change: Any, reason: str) -> None:
    rule = rules.get_rule(name)
    inputs = {n: change(x) for n, x in example_inputs(rule, T=3, device=device).items()}
    with pytest.raises(BackendError, match=f"{name}: backend='triton' cannot run: {reason}"):
        rule(**inputs, backend="triton")


def test_transforms_are_refused(device: str) -> None:
    x = {n: t.float() for n, t in example_inputs(rules.hgrn, T=3, device=device).items()}
    with pytest.raises(BackendError, match="forward-mode"):
        torch.func.grad(lambda u: rules.hgrn(u, x["g"], backend="triton").o.sum())(x["x"])


@pytest.mark.parametrize("name", ["mamba", "rwkv4", "canon"])
def test_a_cpu_is_told_about_the_interpreter(name: str) -> None:
    rule = rules.get_rule(name)
    inputs = {n: x.float() for n, x in example_inputs(rule, T=3).items()}
    with pytest.raises(BackendError, match=r"the inputs are on cpu.*TRITON_INTERPRET=1"):
        rule(**inputs, backend="triton")
