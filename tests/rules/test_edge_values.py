"""Edge values, in every form of every rule alike: full resets, empty batches, overflow, what is not a number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from linrec import rules
from linrec.errors import DtypeError, ShapeError
from linrec.rules import RULES
from linrec.state import map_tensors, named_tensors
from linrec.testing import example_inputs, example_state, relative_error
from tests.rules.closeness import TIGHT, assert_close, assert_near, call_of
from tests.rules.loops import LOOPS
from tests.rules.test_forms import NAMES, forms, has_time

INF = torch.inf
DECAYS = [(n, a) for n in NAMES for a, arg in RULES[n].arguments.items() if "decay" in arg.draw]
DELTA = ["delta_net", "gated_delta_net", "comba", "weight_decay_delta", "log_linear_gated_delta"]
DELTA += ["kimi_delta_attention", "gated_delta_net_2", "rwkv7", "momentum_delta"]
EIGHT = {"chunk_size": 8}
FEW: dict[str, Any] = {"T": 13, "H": 1, "HV": 2, "HQ": 2, "G": 1}


def reset(rule, name, x, tokens, value):
    """The decay ``x`` with full resets at these tokens, in one row and one head more than in the others."""
    x = x.clone()
    if not has_time(rule, name, x):
        x.view(-1)[0] = value
        return x
    x[0, tokens] = value
    x[1, tokens[:1], 0] = value
    return x


def close(got, want, limit=TIGHT):
    """As ``relative_error``, but zero may be the rounding of zero."""
    got, want = got.double(), want.double()
    return torch.isfinite(got).all() and (got - want).norm() <= limit * want.norm() + 1e-13


@pytest.mark.parametrize(
    ("tokens", "with_state"), [([0, 3, 7, 8, 12], True), ([0, 4, 5], False), (list(range(13)), True)], ids=str
)
@pytest.mark.parametrize(("name", "decay"), DECAYS)
def test_minus_infinity_is_a_full_reset(name, decay, tokens, with_state):
    """At the first token, the last, on either side of a chunk's bound, next to each other, everywhere."""
    rule = RULES[name]
    inputs = example_inputs(rule, **FEW)
    inputs[decay] = reset(rule, decay, inputs[decay], tokens, -INF)
    state = example_state(rule, example_inputs(rule, **FEW)) if with_state else None
    leaves = {n: x.requires_grad_() for n, x in inputs.items()}

    def results(call):
        o, after = call(**leaves, state=state)
        found = torch.autograd.grad(o.cos().sum(), list(leaves.values()), allow_unused=True)
        pairs = zip(inputs.values(), found, strict=True)
        found = tuple(torch.zeros_like(x) if g is None else g for x, g in pairs)
        return o, *(t for _, t in named_tensors(after)), *found

    want = results(LOOPS[name])
    for form in forms(rule):
        got = results(lambda form=form, **x: rule.form(form)(**x, **EIGHT))
        parts = ["o", *(f"state {path}" for path, _ in named_tensors(rule.init_state(**inputs))), *leaves]
        for part, a, b in zip(parts, got, want, strict=True):
            who = f"{call_of(name, form, inputs, **EIGHT)}: {part} {list(a.shape)}"
            assert close(a, b), f"{who} has the relative error {relative_error(a, b):.2e}"
        through = dict(zip(leaves, got[-len(leaves) :], strict=True))[decay]
        assert not through[inputs[decay] == -INF].any(), form  # a reset has no derivative


@pytest.mark.parametrize("value", [-1e4, -1e30])
@pytest.mark.parametrize(("name", "decay"), DECAYS)
def test_a_strong_decay_costs_its_neighbours_no_digits(name, decay, value):
    rule = RULES[name]
    inputs = example_inputs(rule, **FEW)
    inputs[decay] = reset(rule, decay, inputs[decay], [3, 7, 8, 11], value)
    want = LOOPS[name](**inputs)
    for form in forms(rule):
        who = call_of(name, form, inputs, **EIGHT)
        assert_close(tuple(rule.form(form)(**inputs, **EIGHT)), tuple(want), who=who)


@pytest.mark.parametrize(("name", "decay"), DECAYS)
def test_resets_in_single_precision(name, decay):
    rule = RULES[name]
    inputs = example_inputs(rule, **{**FEW, "T": 67}, dtype=torch.float32)
    inputs[decay] = reset(rule, decay, inputs[decay], [5, 31, 32, 63, 64], -INF)
    exact = LOOPS[name](**{n: x.double() for n, x in inputs.items()})[0]
    leaves = {n: x.requires_grad_() for n, x in inputs.items()}
    for form in forms(rule):
        o, state = rule.form(form)(**leaves)
        assert_near(o, exact, 1e-4, call_of(name, form, inputs))
        assert all(torch.isfinite(t).all() for _, t in named_tensors(state))
        o.sum().backward()
        assert all(x.grad is None or torch.isfinite(x.grad).all() for x in leaves.values())


def test_a_reset_of_attention_holds_for_the_cache():
    """What was forgotten in one call is not seen in the next, on rows of different lengths as well."""
    rule = rules.forgetting_attention
    inputs = example_inputs(rule, T=12, B=1)
    inputs["g"][:, [4, 9], 1] = -INF
    whole = rule(**inputs)
    bounds = torch.tensor([0, 7, 12])
    first = rule(**inputs, cu_seqlens=bounds)
    follow = example_inputs(rule, T=2, B=2, seed=3)
    after = rule(**follow, state=first.state).o
    for row, (start, stop) in enumerate(((0, 7), (7, 12))):
        both = {n: torch.cat([x[:, start:stop], follow[n][row : row + 1]], 1) for n, x in inputs.items()}
        assert relative_error(after[row : row + 1], LOOPS[rule.name](**both)[0][:, -2:]) < TIGHT
    assert relative_error(whole.o, LOOPS[rule.name](**inputs)[0]) < TIGHT


@pytest.mark.parametrize(("name", "gate"), [("mlstm", "i"), ("abc", "z")])
def test_an_input_gate_may_be_closed(name, gate):
    """-inf: the token is not written, at the first one as well; with a reset at the same token, too."""
    rule = RULES[name]
    inputs = example_inputs(rule, T=19)
    inputs[gate][:, [0, 1, 8, 9]] = -INF
    if name == "mlstm":
        inputs["g"][:, 8] = -INF
    results = []
    for form in forms(rule):
        leaves = {n: x.clone().requires_grad_() for n, x in inputs.items()}
        o, state = rule.form(form)(**leaves, **EIGHT)
        found = torch.autograd.grad(o.cos().sum(), list(leaves.values()))
        results.append([o, *(t for _, t in named_tensors(state)), *found])
    for result in results:
        assert all(close(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("name", DELTA)
def test_an_inverse_that_grows_has_gradients_where_the_recurrence_has(name):
    """Equal keys and a strength of minus two: 3^T in the chunk, and its square above the diagonal."""
    rule = RULES[name]
    inputs = example_inputs(rule, T=48, B=1, dtype=torch.float32)
    for key in ("k", "kappa", "p"):
        if key in inputs:
            inputs[key] = inputs[key][:, :1].expand_as(inputs[key]).clone()
    inputs |= {n: torch.full_like(x, -2.0) for n, x in inputs.items() if n in ("beta", "erase", "eta")}
    inputs |= {"g": torch.zeros_like(inputs["g"])} if "g" in inputs else {}
    leaves = {n: x.requires_grad_() for n, x in inputs.items()}
    want = torch.autograd.grad(rule.recurrent(**leaves).o.sum(), list(leaves.values()))
    assert all(torch.isfinite(g).all() for g in want)
    for form in ("parallel", "chunkwise"):
        got = torch.autograd.grad(rule.form(form)(**leaves).o.sum(), list(leaves.values()))
        assert all(relative_error(a / 1e10, b / 1e10) < 1e-4 for a, b in zip(got, want, strict=True)), form


@pytest.mark.parametrize("length", [0, 1, 9])
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_has_an_empty_result(name, length):
    rule = RULES[name]
    inputs = {n: x.requires_grad_() for n, x in example_inputs(rule, B=0, T=length).items()}
    shape = rule.recurrent(**example_inputs(rule, B=1, T=length)).o.shape
    state = rule.init_state(**inputs)
    for form in [*forms(rule), *(["step"] if length == 1 else [])]:
        o, after = rule.form(form)(**inputs, state=state)
        assert o.shape == (0, *shape[1:]) and o.dtype == torch.float64
        assert all(t.shape[0] == 0 for _, t in named_tensors(after))
        if o.requires_grad:
            found = torch.autograd.grad(o.sum(), list(inputs.values()), allow_unused=True)
            assert all(g is None or not g.any() for g in found)


@pytest.mark.parametrize("bounds", [[0], [0, 0], [0, 0, 4, 4]], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_segments_may_be_empty_or_none(name, bounds):
    rule = RULES[name]
    inputs = {n: x.requires_grad_() for n, x in example_inputs(rule, B=1, T=bounds[-1]).items()}
    for form in forms(rule):
        o, state = rule.form(form)(**inputs, cu_seqlens=torch.tensor(bounds))
        assert o.shape[:2] == (1, bounds[-1])
        assert all(t.shape[0] == len(bounds) - 1 for _, t in named_tensors(state))
        if o.requires_grad:
            torch.autograd.grad(o.sum(), list(inputs.values()), allow_unused=True)


@pytest.mark.parametrize("name", NAMES)
def test_no_width_and_no_number_of_heads_is_zero(name):
    rule = RULES[name]
    dims = {d for arg in rule.arguments.values() for shape in arg.shapes for d in shape} - {"B", "T"}
    for dim in sorted(dims):
        none: dict[str, Any] = {dim: 0}
        inputs = example_inputs(rule, T=3, **none)
        for form in forms(rule):
            with pytest.raises(ShapeError, match=name):
                rule.form(form)(**inputs)


@pytest.mark.parametrize("value", [torch.nan, INF])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_a_number_stays_where_it_is(name, value):
    """Not in earlier chunks (single tokens in the recurrent form), other rows, other segments or their gradients."""
    rule = RULES[name]
    inputs = example_inputs(rule, T=24)
    packed = {n: x.flatten(0, 1)[None] if has_time(rule, n, x) else x for n, x in inputs.items()}
    wanted = {form: rule.form(form)(**inputs, **EIGHT).o for form in forms(rule)}
    for argument, x in inputs.items():
        if not has_time(rule, argument, x):
            continue
        bad, worse = ({n: y.clone() for n, y in tensors.items()} for tensors in (inputs, packed))
        bad[argument][1, 17] = value
        worse[argument][0, :24] = value  # the token that padding is taken from is the first of all
        for form in forms(rule):
            clean = {"parallel": 0, "chunkwise": 15, "recurrent": 17}[
                form
            ]  # of mini-batches of five, and of eight
            o, want = rule.form(form)(**bad, **EIGHT).o, wanted[form]
            assert_close((o[0], o[1, :clean]), (want[0], want[1, :clean]))
            bounds = torch.tensor([0, 24, 25, 48])
            leaves = {n: y.clone().requires_grad_() for n, y in worse.items()}
            o, state = rule.form(form)(**leaves, **EIGHT, cu_seqlens=bounds)
            assert torch.isfinite(o[:, 24:]).all()
            assert all(torch.isfinite(t[1:]).all() for _, t in named_tensors(state))
            timed = [y for n, y in leaves.items() if has_time(rule, n, y)]
            found = torch.autograd.grad(o[:, 24:].sum(), timed, allow_unused=True)
            assert all(g is None or torch.isfinite(g[:, 24:]).all() for g in found)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_numbers_that_are_whole_is_refused(name):
    rule = RULES[name]
    inputs = example_inputs(rule, T=1)
    state = map_tensors(lambda t: t.long(), example_state(rule, inputs))
    for form in [*forms(rule), "step"]:
        with pytest.raises(DtypeError, match=name):
            rule.form(form)(**inputs, state=state)
