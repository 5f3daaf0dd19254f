"""Every derivative of every rule, in every form and every mode of torch, against its loop. Found from the registry.

The first derivatives are those of the loop, in reverse; the second are differences of them. Neither knows how a rule
computes its own.
"""

import itertools
from functools import partial
from typing import Any

import pytest
import torch

from linrec.rules import RULES
from linrec.state import map_tensors, named_tensors
from linrec.testing import example_inputs, example_state, relative_error
from tests.differentiation import (
    MODES,
    along_them,
    difference_of_gradients,
    directions,
    gradient,
    joined,
    reverse_over_reverse,
)
from tests.rules.closeness import assert_near, call_of
from tests.rules.loops import LOOPS

NAMES = sorted(RULES)
FORMS = ("parallel", "chunkwise", "recurrent")
SMALL: dict[str, Any] = {
    "T": 5,
    "B": 2,
    "H": 1,
    "HV": 2,
    "HQ": 2,
    "G": 1,
    "K": 4,
    "N": 4,
    "V": 4,
    "P": 4,
    "D": 3,
}
SMALL |= {"J": 2, "M": 3, "R": 2, "L": 4, "E": 4, "C": 3, "W": 3, "RV": 2}
# A unit of measurement among the state is held fixed by derivatives, but not by differences.
WITH_UNITS = ("mlstm", "rwkv4")
TIGHT, BY_DIFFERENCES = 1e-10, 1e-6


def calls(rule):
    """(name, call) of every form, with chunks that do not divide the length."""
    for form in FORMS:
        if form not in rule.reasons:
            yield form, partial(rule.form(form), **({"chunk_size": 2} if form == "chunkwise" else {}))


def related(rule, values):
    """Arguments of the values: one tensor where shape and domain agree, and each computed from those before it."""
    found, made, factor = {}, {}, 1.0
    for (name, argument), x in zip(rule.arguments.items(), values, strict=True):
        kind = x.shape, argument.draw
        if kind not in made:
            made[kind] = x * factor
            factor = 1 + 0.3 * made[kind].mean().tanh()
        found[name] = made[kind]
    return found, factor


def scaled(state, factor):
    return map_tensors(lambda s: s * factor if s.is_floating_point() else s, state)


def loss_of(name, result):
    o, state = result
    total = (o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)).sum()
    for i, (_, s) in enumerate(named_tensors(state if name not in WITH_UNITS else ())):
        if s.is_floating_point():
            total = total + (s * torch.linspace(0.5, -1, s.numel(), dtype=s.dtype).view_as(s)).sum() * (i + 1)
    return total


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name, length):
    """Of arguments that share tensors and depend on each other, and of a state that depends on them."""
    rule = RULES[name]
    inputs = example_inputs(rule, **{**SMALL, "T": length})
    values, before = list(inputs.values()), example_state(rule, inputs)

    def loss(call, *values):
        arguments, factor = related(rule, values)
        return loss_of(name, call(**arguments, state=scaled(before, factor)))

    along = directions(values)
    first = gradient(partial(loss, LOOPS[name]), values)
    second = joined(difference_of_gradients(partial(loss, LOOPS[name]), values, along))
    slope = along_them(first, along)
    every = calls(rule) if length > 1 else [("default", rule)]
    for (form, call), (mode, differentiate) in itertools.product(every, MODES.items()):
        got, again = differentiate(partial(loss, call), values, along)
        who = f"{call_of(name, form, inputs)} in {mode}"
        if isinstance(got, torch.Tensor):
            assert_near(got, slope, TIGHT, who, "the slope")
        else:
            assert_near(joined(got), joined(first), TIGHT, who, "the gradient")
        assert_near(joined(again), second, BY_DIFFERENCES, who, "the second derivative")


@pytest.mark.parametrize("name", NAMES)
def test_what_changes_in_place_is_noticed(name):
    """Between forward and backward: torch raises, or the gradient is that of the values as they were."""
    rule = RULES[name]
    inputs = example_inputs(rule, **SMALL)
    state = map_tensors(torch.clone, example_state(rule, inputs))
    held = {"state." + path: x for path, x in named_tensors(state) if x.is_floating_point()}
    for (form, call), (path, x) in itertools.product(calls(rule), (inputs | held).items()):
        leaves = [y.requires_grad_(y is not x) for y in inputs.values() if y is not x]

        def loss(call=call):
            return loss_of(name, call(**inputs, state=state))

        want, result = torch.autograd.grad(loss(), leaves, allow_unused=True), loss()
        before = x.requires_grad_(False).clone()
        x.mul_(1.5)
        try:
            got = torch.autograd.grad(result, leaves, allow_unused=True)
        except RuntimeError as error:
            if "modified" not in str(error):
                raise
        else:
            assert all(relative_error(a, b) < TIGHT for a, b in pairs(got, want)), (form, path)
        x.copy_(before)


def pairs(got, want):
    assert [a is None for a in got] == [b is None for b in want]
    return [(a, b) for a, b in zip(got, want, strict=True) if a is not None]


@pytest.mark.parametrize("name", NAMES)
def test_several_gradients_at_once(name):
    """As jacobian and hessian with vectorize=True ask for them: the same as one by one, or torch says what it lacks."""
    rule = RULES[name]
    leaves = [x.requires_grad_() for x in example_inputs(rule, **SMALL).values()]
    for (form, call), graph in itertools.product(calls(rule), (False, True)):
        o = call(*leaves).o
        outer = torch.stack([torch.ones_like(o), o.detach().cos()])
        options = {"allow_unused": True, "retain_graph": True}
        try:
            got = torch.autograd.grad(o, leaves, outer, is_grads_batched=True, create_graph=graph, **options)
        except RuntimeError as error:
            if "Batching rule not implemented" not in str(error) or rule.engine.name in (
                "matrix",
                "fastweight",
            ):
                raise
            continue
        for row in range(2):
            want = torch.autograd.grad(o, leaves, outer[row], **options)
            now = [None if g is None else g[row] for g in got]
            assert all(relative_error(a, b) < TIGHT for a, b in pairs(now, want)), (form, graph)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_of_packed_segments(name):
    rule, bounds = RULES[name], [0, 3, 3, 4, 7]
    inputs = example_inputs(rule, **{**SMALL, "B": 1, "T": bounds[-1]})
    values, along = list(inputs.values()), directions(list(inputs.values()))

    def alone(*values):
        arguments, total = related(rule, values)[0], torch.zeros(())
        weights = torch.linspace(-1, 1, bounds[-1], dtype=torch.float64)
        for start, stop in itertools.pairwise(bounds):
            if stop > start:
                cut = {n: x[:, start:stop] if timed(rule, n, x) else x for n, x in arguments.items()}
                total = total + (LOOPS[name](**cut)[0].flatten(2).sum(2)[0] * weights[start:stop]).sum()
        return total

    def packed(call, *values):
        o = call(**related(rule, values)[0], cu_seqlens=torch.tensor(bounds)).o
        return (o.flatten(2).sum(2)[0] * torch.linspace(-1, 1, bounds[-1], dtype=torch.float64)).sum()

    first, second = gradient(alone, values), difference_of_gradients(alone, values, along)
    for form, call in calls(rule):
        got, again = reverse_over_reverse(partial(packed, call), values, along)
        who = call_of(name, form, inputs, cu_seqlens=bounds)
        assert_near(joined(got), joined(first), TIGHT, who, "the gradient")
        assert_near(joined(again), joined(second), BY_DIFFERENCES, who, "the second derivative")


def timed(rule, name, x):
    return "T" in (rule.arguments[name].shape_for(x.dim()) or ())
