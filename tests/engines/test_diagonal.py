"""The elementwise recurrence: any decay, bounded memory, no loop over tokens, inputs chosen to break it."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from linrec import rules
from linrec.engines.diagonal import DIAGONAL, DiagonalTerms
from linrec.engines.numerics import scans
from linrec.engines.numerics.maxplus import stabiliser
from linrec.engines.numerics.recurrence import WIDE, recurrence, recurrence_in_place
from linrec.errors import DtypeError, ShapeError
from linrec.rule import Call
from linrec.testing import example_inputs, relative_error
from tests.rules.loops import LOOPS

FORMS = ("parallel", "chunkwise", "recurrent")
GATED = ["hgrn", "qrnn", "rg_lru", "sru"]


def loop(a, x, start):
    rows, h = [], start
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        rows.append(h)
    return torch.stack(rows, 1)


def decays(kind, *shape):
    a = torch.randn(*shape, dtype=torch.complex128 if kind == "complex" else torch.float64)
    if kind == "zeros":
        return torch.where(torch.rand(*shape) < 0.3, 0.0, a)
    return a if kind != "growing" else 1 + a.abs() / 50


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 9, 64, 65])
@pytest.mark.parametrize("kind", ["any sign", "zeros", "complex", "growing"])
def test_associative_scan(kind, length):
    a = decays(kind, 2, length, 3)
    x, start = torch.randn(2, length, 3, dtype=a.dtype), torch.randn(2, 3, dtype=a.dtype)
    assert relative_error_complex(scans.associative(a, x, start), loop(a, x, start)) < 1e-13


def relative_error_complex(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_quadratic_equals_associative(kind):
    g = -2 * torch.rand(2, 40, 3, dtype=torch.float64)
    if kind == "complex":
        g = torch.complex(g, torch.randn_like(g))
    x, start = torch.randn_like(g), torch.randn_like(g[:, 0])
    assert relative_error_complex(scans.quadratic(g, x, start), scans.associative(g.exp(), x, start)) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_convolution_and_powers(dtype):
    kernel, x = torch.randn(9, 3, dtype=dtype), torch.randn(2, 9, 3, dtype=dtype)
    want = torch.stack([(kernel[: t + 1].flip(0) * x[:, : t + 1]).sum(1) for t in range(9)], 1)
    assert relative_error_complex(scans.convolve(kernel, x), want) < 1e-13


def test_powers_keep_the_phase():
    """After thousands of steps the phase is still that of the rounded angle."""
    log_a = torch.complex(torch.tensor([-1e-5]), torch.tensor([2.5]))
    for count in (1, 2, 7, 5001):
        steps = torch.arange(count)[:, None]
        got = scans.ladder(log_a, count)
        assert got.shape == (count, 1) and got.dtype == log_a.dtype
        assert (
            relative_error_complex(got.to(torch.complex128), (steps * log_a.to(torch.complex128)).exp())
            < 2e-7
        )


def test_stabiliser_is_the_recursion():
    f, i = torch.randn(2, 30, 3).double() - 1, 50 * torch.randn(2, 30, 3).double()
    for start in (torch.full((2, 3), scans.EMPTY).double(), torch.randn(2, 3).double()):
        m, rows = start, []
        for t in range(30):
            m = torch.maximum(f[:, t] + m, i[:, t])
            rows.append(m)
        highest, g, weight = stabiliser(f, i, start)
        assert relative_error(highest, torch.stack(rows, 1)) < 1e-14
        assert (g <= 1e-13).all() and (weight <= 1 + 1e-13).all()


ADVERSARIAL = {
    "g = 0": torch.zeros_like,
    "g = -50": lambda g: torch.full_like(g, -50.0),
    "g = -400": lambda g: torch.full_like(g, -400.0),
    "resets among weak decays": lambda g: torch.where(torch.rand_like(g) < 0.2, -400.0, g / 50),
}


@pytest.mark.parametrize("case", ADVERSARIAL)
@pytest.mark.parametrize("name", GATED)
def test_adversarial_decays(name, case):
    rule = rules.get_rule(name)
    x = example_inputs(rule, T=130, B=1)
    x["g"] = ADVERSARIAL[case](x["g"])
    want = LOOPS[name](**x)[0]
    low = LOOPS[name](**{n: t.float() for n, t in x.items()})[0]
    for form in FORMS:
        leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
        out = rule.form(form)(**leaves)
        assert relative_error(out.o, want) < 1e-12
        grads = torch.autograd.grad(out.o.square().sum() + out.state.sum(), list(leaves.values()))
        assert all(torch.isfinite(g).all() for g in grads)
        single = rule.form(form)(**{n: t.float() for n, t in x.items()}).o
        assert relative_error(single, want) < 2 * relative_error(low, want) + 5e-7


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned, and the number of operations."""

    def __init__(self):
        super().__init__()
        self.elements, self.calls = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize("name", ["mamba", "longhorn", "s4d"])
def test_selective_scans_hold_one_chunk_of_states(name):
    rule, length, chunk = rules.get_rule(name), 512, 32
    x = {n: t.requires_grad_() for n, t in example_inputs(rule, T=length, B=1, D=16, N=16).items()}
    kept = {}  # by memory: the tokens of a chunk are views

    def keep(t):
        memory = t.untyped_storage()
        kept[memory.data_ptr()] = memory.nbytes() // t.itemsize
        return t

    with Largest() as seen:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            o = rule.chunkwise(**x, chunk_size=chunk).o
        o.sum().backward()
    states = 16 * 16
    assert seen.elements <= max(2 * (chunk + 1) * states, length * 16)
    assert sum(kept.values()) < length * states / 2


def test_convolution_of_s4d_holds_no_states():
    x = example_inputs(rules.s4d, T=512, B=8, D=4, N=16)
    with Largest() as seen:
        rules.s4d.parallel(**x)
    assert seen.elements < 8 * 512 * 4 * 16 / 2


@pytest.mark.parametrize("name", ["mamba", "longhorn", "s4d", "s5", "lru", "rwkv4", *GATED])
def test_no_loop_over_tokens(name):
    """Twice the tokens in as many chunks cost the same number of operations, up to the scan's depth."""
    rule = rules.get_rule(name)
    calls = []
    for length in (2048, 4096):
        x = example_inputs(rule, T=length, B=1)
        with Largest() as seen:
            rule.chunkwise(**x, chunk_size=length // 4)
        calls.append(seen.calls)
    assert calls[0] < 1024 and calls[1] < calls[0] * 1.25


def test_functional_gradients():
    """torch.func's transforms, which do not allow the recomputation that the ordinary backward pass uses."""
    x = example_inputs(rules.mamba, T=10)
    rest = list(x.values())[1:]
    got = torch.func.grad(lambda u: rules.mamba(u, *rest, chunk_size=4).o.square().sum())(x["x"])
    leaf = x["x"].requires_grad_()
    (want,) = torch.autograd.grad(rules.mamba(leaf, *rest, chunk_size=4).o.square().sum(), leaf)
    assert relative_error(got, want) < 1e-13


@pytest.mark.parametrize(
    ("name", "state", "error", "text"),
    [
        ("hgrn", torch.zeros(2, 3), ShapeError, r"hgrn: state must be \[2, 4\], got \[2, 3\]"),
        ("hgrn", (1,), DtypeError, r"hgrn: state must be a tensor \[2, 4\], got tuple"),
        ("hgrn", torch.zeros(2, 4, dtype=torch.long), DtypeError, "must be floating point"),
        ("lru", torch.zeros(2, 8), ShapeError, r"lru: state must be \[2, 8, 2\]"),
        ("rwkv4", torch.zeros(2, 4), DtypeError, "rwkv4: state must be a WKVState, got Tensor"),
    ],
)
def test_wrong_states(name, state, error, text):
    rule = rules.get_rule(name)
    with pytest.raises(error, match=text):
        rule(**example_inputs(rule, T=3), state=state)


def general_terms(a, x):
    """Decays of any sign, or complex ones, that change with time; a rule like this needs log=False."""
    if a.is_complex():
        tokens = {"a_re": a.real, "a_im": a.imag, "x_re": x.real, "x_im": x.imag}
        return DiagonalTerms(
            tokens,
            lambda t: (torch.complex(t["a_re"], t["a_im"]), torch.complex(t["x_re"], t["x_im"])),
            channels=(3,),
            read=lambda t, h: torch.view_as_real(h).flatten(-2),
            log=False,
            complex=True,
        )
    return DiagonalTerms({"a": a, "x": x}, lambda t: (t["a"], t["x"]), channels=(3,), log=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["any sign", "zeros", "complex"])
def test_engine_takes_any_decay(kind, form):
    """In every form, with a state, and in segments whose padding must not decay anything."""
    bounds = [0, 5, 5, 8, 20]
    a = decays(kind, 1, 20, 3)
    x, start = torch.randn_like(a), torch.randn(4, 3, dtype=a.dtype)
    state = torch.view_as_real(start) if a.is_complex() else start
    o, last = DIAGONAL.run(general_terms(a, x), state, Call(form, 1.0, bounds, 4, "auto"), "test")
    o = torch.view_as_complex(o.unflatten(-1, (3, 2))) if a.is_complex() else o
    last = torch.view_as_complex(last) if a.is_complex() else last
    for s, (i, j) in enumerate(itertools.pairwise(bounds)):
        want = loop(a[:, i:j], x[:, i:j], start[s : s + 1])[0] if j > i else start[s : s + 1]
        assert relative_error_complex(last[s], want[-1]) < 1e-13
        if j > i:
            assert relative_error_complex(o[0, i:j], want) < 1e-13


@pytest.mark.parametrize("kind", ["any sign", "complex"])
@pytest.mark.parametrize("length", [1, 2, 5, 16, 37])
@pytest.mark.parametrize("shared", [False, True])
def test_recurrence_and_its_derivatives(kind, length, shared):
    """Against the loop, with one decay for the whole batch too: values, both modes, and twice."""
    a = decays(kind, 1 if shared else 2, length, 2)
    x, start = torch.randn(2, length, 2, dtype=a.dtype), torch.randn(2, 2, dtype=a.dtype)
    assert relative_error_complex(recurrence(a, x, start), loop(a, x, start)) < 1e-13
    if length < 10:
        inputs = tuple(t.requires_grad_() for t in (a, x, start))
        torch.autograd.gradcheck(recurrence, inputs, check_forward_ad=True)
        torch.autograd.gradgradcheck(recurrence, inputs)
    with torch.no_grad():
        expected = loop(a, x, start)
        assert relative_error_complex(recurrence_in_place(a.expand_as(x).clone(), x, start), expected) < 1e-13


@pytest.mark.parametrize("decay_rows", [1, 2])
def test_wide_states_go_position_by_position(decay_rows):
    """The same values and gradients as the definition, at a width where the recurrence takes no blocks."""
    generator = torch.Generator().manual_seed(3)
    width, length = WIDE // 2, 6
    a = torch.rand(decay_rows, length, width, generator=generator, dtype=torch.float64).requires_grad_()
    x, start = (
        torch.randn(2, *n, width, generator=generator, dtype=torch.float64).requires_grad_()
        for n in ((length,), ())
    )
    assert start.numel() >= WIDE
    want, got = loop(a, x, start), recurrence(a, x, start)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    weight = torch.randn(want.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        *(torch.autograd.grad((y * weight).sum(), (a, x, start)) for y in (got, want)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(
            recurrence_in_place(a.detach().clone(), x.detach().clone(), start.detach()),
            want,
            rtol=0,
            atol=1e-12,
        )


def test_selective_scan_of_a_wide_state():
    inputs = example_inputs(rules.mamba, T=70, D=WIDE // 4, N=8)
    with torch.no_grad():
        chunked, loop = rules.mamba(**inputs), rules.mamba.recurrent(**inputs)
    torch.testing.assert_close(chunked.o, loop.o, rtol=0, atol=1e-10)
    torch.testing.assert_close(chunked.state, loop.state, rtol=0, atol=1e-10)
