"""Every registered rule, in every form, against its own independent loop. Found from the registry."""

import itertools
from typing import Any

import pytest
import torch
from torch.func import jvp, vmap

from linrec.rules import RULES
from linrec.state import map_tensors, named_tensors, select_rows
from linrec.testing import SIZES, budget, example_inputs, example_state
from tests.rules.closeness import TIGHT, assert_close, assert_near, call_of
from tests.rules.loops import LOOPS

NAMES = sorted(RULES)
FORMS = ("parallel", "chunkwise", "recurrent")
# A loop takes its time for each row and head; on both sides of a chunk's end one row with one group will do.
ONE_GROUP: Any = {"B": 1, "H": 1, "HV": 2, "HQ": 2, "G": 1}


def forms(rule):
    """The forms that the rule has, apart from step."""
    return [form for form in FORMS if form not in rule.reasons]


def has_time(rule, name, x):
    return "T" in (rule.arguments[name].shape_for(x.dim()) or ())


def over_time(rule, inputs, start, stop):
    """The tokens start .. stop of the inputs; parameters without a time axis stay."""
    cut = {}
    for name, x in inputs.items():
        cut[name] = x[:, start:stop] if has_time(rule, name, x) else x
    return cut


@pytest.mark.parametrize("name", NAMES)
def test_has_an_independent_loop(name):
    assert name in LOOPS, f"write the loop of {name} in tests/rules/loops.py"


@pytest.mark.parametrize("with_state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("name", NAMES)
def test_forms_equal_the_loop(name, length, with_state):
    rule = RULES[name]
    inputs = example_inputs(rule, T=length, seed=length, **(ONE_GROUP if length in (63, 64, 130) else {}))
    state = example_state(rule, inputs) if with_state else None
    want = LOOPS[name](**inputs, state=state)
    for form in forms(rule):
        who = call_of(name, form, inputs)
        assert_close(tuple(rule.form(form)(**inputs, state=state)), tuple(want), who=who)
    chunks = (16, 50) if length > 65 else (1, 16, 50)
    for chunk in chunks if "chunkwise" not in rule.reasons else ():
        who = call_of(name, "chunkwise", inputs, chunk_size=chunk)
        assert_close(tuple(rule.chunkwise(**inputs, state=state, chunk_size=chunk)), tuple(want), who=who)


@pytest.mark.parametrize("name", NAMES)
def test_scale_is_the_same_factor_in_every_form(name):
    rule = RULES[name]
    inputs = example_inputs(rule, T=20)
    want = LOOPS[name](**inputs, scale=0.7)
    for form in forms(rule):
        who = call_of(name, form, inputs, scale=0.7)
        assert_close(tuple(rule.form(form)(**inputs, scale=0.7)), tuple(want), who=who)


@pytest.mark.parametrize("name", NAMES)
def test_default_form_and_steps(name):
    rule = RULES[name]
    inputs = example_inputs(rule, T=7)
    whole = rule(**inputs)
    state, outputs = rule.init_state(**inputs), []
    for t in range(7):
        token = over_time(rule, inputs, t, t + 1)
        if t % 2:  # without the time axis
            token = {n: x[:, 0] if has_time(rule, n, x) else x for n, x in token.items()}
        o, state = rule.step(**token, state=state)
        outputs.append(o if o.dim() == whole.o.dim() else o[:, None])
    assert_close((torch.cat(outputs, 1), state), tuple(whole), who=call_of(name, "step", inputs))


@pytest.mark.parametrize("name", NAMES)
def test_split_calls_carry_the_state(name):
    rule = RULES[name]
    inputs = example_inputs(rule, T=130)
    whole = rule(**inputs)
    for form in forms(rule):
        state, outputs = None, []
        for start, stop in ((0, 1), (1, 1), (1, 66), (66, 130)):
            o, state = rule.form(form)(**over_time(rule, inputs, start, stop), state=state)
            outputs.append(o)
        who = call_of(name, form, inputs, split=(1, 1, 66))
        assert_close((torch.cat(outputs, 1), state), tuple(whole), who=who)


@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_leave_the_state(name):
    rule = RULES[name]
    inputs = example_inputs(rule, T=0)
    state = example_state(rule, inputs)
    for form in forms(rule):
        o, after = rule.form(form)(**inputs, state=state)
        assert o.shape[1] == 0 and o.shape[0] == 2
        assert_close(after, state, 1e-15, call_of(name, form, inputs))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_packed_equals_separate(name, form):
    rule = RULES[name]
    if form in rule.reasons:
        pytest.skip(rule.reasons[form])
    bounds = [0, 1, 1, 34, 36, 101, 130]
    inputs = example_inputs(rule, T=bounds[-1], B=1)
    state = example_state(rule, inputs, segments=len(bounds) - 1)
    packed = rule.form(form)(**inputs, state=state, cu_seqlens=torch.tensor(bounds))
    for s, (start, stop) in enumerate(itertools.pairwise(bounds)):
        row = select_rows(state, torch.tensor([s]))
        who = call_of(name, form, inputs, cu_seqlens=bounds, segment=s)
        alone = rule.form(form)(**over_time(rule, inputs, start, stop), state=row)
        if stop > start:
            assert_near(packed.o[:, start:stop], alone.o, TIGHT, who)
        assert_close(_trim(select_rows(packed.state, torch.tensor([s]))), _trim(alone.state), who=who)


def _trim(state):
    """A cache without the padding that a packed batch needs."""
    if hasattr(state, "length"):
        used = int(state.length.max())
        columns = [getattr(state, n)[:, :used] for n in state._fields if n != "length"]
        return type(state)(*columns, state.length)
    return state


def _loss(result, state_too=True):
    o, state = result
    total = (o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)).sum()
    for i, (_, s) in enumerate(named_tensors(state)):
        if state_too and s.is_floating_point():
            total = total + (s * torch.linspace(0.5, -1, s.numel(), dtype=s.dtype).view_as(s)).sum() * (i + 1)
    return total


@pytest.mark.parametrize("with_state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_those_of_the_loop(name, with_state):
    rule = RULES[name]
    inputs = {n: x.requires_grad_() for n, x in example_inputs(rule, T=21).items()}
    state = None
    if with_state:
        state = map_tensors(
            lambda t: t.detach().clone().requires_grad_(t.is_floating_point()), example_state(rule, inputs)
        )
    held = {f"state {path}": s for path, s in named_tensors(state) if s.requires_grad}
    parts, leaves = [*inputs, *held], [*inputs.values(), *held.values()]
    want = torch.autograd.grad(_loss(LOOPS[name](**inputs, state=state)), leaves)
    for form in forms(rule):
        extra = {"chunk_size": 8} if form == "chunkwise" else {}
        got = torch.autograd.grad(_loss(tuple(rule.form(form)(**inputs, state=state, **extra))), leaves)
        who = call_of(name, form, inputs, **extra)
        for part, a, b in zip(parts, got, want, strict=True):
            assert_near(a, b, TIGHT, who, f"the gradient of {part}")


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    rule = RULES[name]
    inputs = example_inputs(rule, T=5, B=1, H=1, HV=2, HQ=2, G=1, K=4, N=4, J=2, M=3, R=2, L=4, V=2, P=2, D=2)
    inputs = {n: x.requires_grad_() for n, x in inputs.items()}

    def call(*values):
        return rule(*values, chunk_size=3).o

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode(name):
    rule = RULES[name]
    given = example_inputs(rule, T=19)
    inputs = tuple(given.values())
    tangents = tuple(torch.cos(x * 3) for x in inputs)
    want = jvp(lambda *x: LOOPS[name](*x)[0], inputs, tangents)[1]
    for form in forms(rule):
        got = jvp(lambda *x, f=form: rule.form(f)(*x).o, inputs, tangents)[1]
        assert_near(got, want, TIGHT, call_of(name, form, given), "the derivative of o")


@pytest.mark.parametrize("name", NAMES)
def test_vmap(name):
    rule = RULES[name]
    many = [example_inputs(rule, T=19, seed=s) for s in range(3)]
    stacked = {n: torch.stack([m[n] for m in many]) for n in many[0]}
    for form in forms(rule):
        got = vmap(lambda *x, f=form: rule.form(f)(*x).o)(*stacked.values())
        want = torch.stack([rule.form(form)(**m).o for m in many])
        assert_near(got, want, 1e-13, call_of(name, form, stacked))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_low_precision_within_its_budget(name, dtype):
    """Against the float64 loop on the same rounded inputs; the budget comes from the loop in float32."""
    rule = RULES[name]
    inputs = example_inputs(rule, T=70, dtype=dtype, **ONE_GROUP)
    exact = LOOPS[name](**{n: x.double() for n, x in inputs.items()})[0]
    rounded = LOOPS[name](**{n: x.float() for n, x in inputs.items()})[0].to(dtype)
    for form in forms(rule):
        o, state = rule.form(form)(**inputs)
        assert o.dtype == dtype
        if not rule.grows:
            assert all(s.dtype == torch.float32 for _, s in named_tensors(state) if s.is_floating_point())
        assert_near(o, exact, budget(rounded, exact, dtype), call_of(name, form, inputs, dtype=dtype))


@pytest.mark.parametrize("name", NAMES)
def test_state_floats_are_counted_right(name):
    rule = RULES[name]
    sizes = {**SIZES, "T": 11, "H": 2, "HV": 2, "HQ": 2, "D": 2}
    state = rule(**example_inputs(rule, T=11, B=1, H=2, HV=2, HQ=2, G=2, D=2)).state
    held = sum(s.numel() for _, s in named_tensors(state) if s.is_floating_point())
    assert held == 2 * eval(rule.state_floats, {}, sizes)
