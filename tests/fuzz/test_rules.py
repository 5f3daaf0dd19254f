"""Every form of every rule against its independent loop, on what a person would not think of."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from linrec.rules import RULES
from linrec.state import map_tensors, named_tensors, select_rows
from linrec.testing import budget, example_inputs, relative_error
from tests.fuzz.cases import FORMS, Case, cases, differences, names, sizes, trimmed, weighed


@given(cases())
def test_forms_equal_the_loop(case: Case) -> None:
    if case.length == 0:
        for form in case.forms():
            o, after = case.run(form)
            assert o.shape[1] == 0 and (case.state is None or not differences(after, case.state)), form
        return
    want = case.loop()
    for form in case.forms():
        assert not differences(case.run(form), want), form
    if case.length == 1:
        assert not differences(case.run("step"), want)


@given(cases(B=1, huge=False))  # a decay's gradient is a difference of such numbers
def test_gradients_equal_those_of_the_loop(case: Case) -> None:
    if case.length == 0:
        return
    leaves = {n: x.detach().clone().requires_grad_() for n, x in case.inputs.items()}
    state = map_tensors(lambda t: t.detach().clone().requires_grad_(t.is_floating_point()), case.state)
    every = [*leaves.values(), *(t for _, t in named_tensors(state) if t.requires_grad)]

    def gradients(result):
        found = torch.autograd.grad(weighed(result), every, allow_unused=True)
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(every, found, strict=True))

    want = gradients(case.loop(leaves, state=state))
    for form in case.forms():
        assert not differences(gradients(case.run(form, leaves, state=state)), want), form


@given(cases(), st.data())
def test_a_prefix_and_its_continuation_are_the_whole(case: Case, data: st.DataObject) -> None:
    whole = case.run(case.forms()[-1])
    cut = data.draw(st.integers(0, case.length))
    first, second = (data.draw(st.sampled_from(case.forms())) for _ in range(2))
    head, between = case.run(first, case.part(0, cut))
    tail, last = case.run(second, case.part(cut, case.length), state=between)
    assert not differences((torch.cat([head, tail], 1), last), whole), (cut, first, second)


@given(cases())
def test_steps_are_the_whole(case: Case) -> None:
    whole = case.run(case.forms()[0])
    state, outputs = case.state, [whole[0][:, :0]]
    for t in range(case.length):
        o, state = case.rule.step(**case.part(t, t + 1), state=state)
        outputs.append(o)
    if case.length:
        assert not differences((torch.cat(outputs, 1), state), whole)


@given(st.data())
def test_packed_segments_are_alone(data: st.DataObject) -> None:
    rule = RULES[data.draw(names)]
    lengths = data.draw(st.lists(st.sampled_from([0, 0, 1, 2, 5, 18]), max_size=5))
    bounds = list(itertools.accumulate(lengths, initial=0))
    case = data.draw(cases(rule=rule, B=1, T=bounds[-1]))
    kept = None
    if case.state is not None and lengths:
        kept = select_rows(case.state, torch.zeros(len(lengths), dtype=torch.long))
    for form in case.forms():
        o, after = case.run(form, state=kept, cu_seqlens=torch.tensor(bounds))
        assert all(len(t) == len(lengths) for _, t in named_tensors(after))
        for row, (start, stop) in enumerate(itertools.pairwise(bounds)):
            state = None if kept is None else case.state
            alone, end = case.run(form, case.part(start, stop), state=state)
            mine = select_rows(after, torch.tensor([row]))
            assert not differences((o[:, start:stop], trimmed(mine)), (alone, trimmed(end))), (form, row)


@given(cases(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_a_state_of_another_dtype(case: Case, dtype: torch.dtype) -> None:
    """It is cast to what the rule keeps, or refused; in every form alike."""
    if case.state is None or case.length == 0:
        return
    state = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, case.state)
    outcomes: list[Any] = []
    for form in [*case.forms(), *(["step"] if case.length == 1 else [])]:
        try:
            outcomes.append(case.run(form, state=state))
        except ValueError as error:
            outcomes.append(type(error))
    if isinstance(outcomes[0], type):
        assert set(map(repr, outcomes)) == {repr(outcomes[0])}
    else:
        assert all(not differences(outcome, outcomes[0]) for outcome in outcomes[1:])


@given(cases(dtype=torch.float64), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_low_precision_within_its_budget(case: Case, dtype: torch.dtype) -> None:
    """Against the loop in float64 on the same rounded inputs; the budget comes from the loop in float32."""
    if case.length == 0:
        return
    case.state = None
    inputs = {n: x.to(dtype) for n, x in case.inputs.items()}
    exact = case.loop({n: x.double() for n, x in inputs.items()})[0]
    rounded = case.loop({n: x.float() for n, x in inputs.items()})[0].to(dtype)
    if not torch.isfinite(rounded).all():
        return
    for form in case.forms():
        o = case.run(form, inputs)[0]
        assert o.dtype == dtype
        # Few numbers may round luckily in one order of sums and not in another.
        least = 8 * torch.finfo(torch.float32).eps
        assert relative_error(o, exact) < 2 * budget(rounded, exact, dtype) + least, form


@given(st.data())
def test_no_rows(data: st.DataObject) -> None:
    rule = RULES[data.draw(names)]
    dims: dict[str, Any] = data.draw(sizes(rule, B=0))
    inputs = example_inputs(rule, **dims)
    inputs = {n: x.requires_grad_() for n, x in inputs.items()}
    results = [rule.form(form)(**inputs) for form in FORMS if form not in rule.reasons]
    for o, state in results:
        assert o.shape == results[0].o.shape and o.shape[0] == 0
        assert [t.shape for _, t in named_tensors(state)] == [
            t.shape for _, t in named_tensors(results[0].state)
        ]
        if o.requires_grad:
            found = torch.autograd.grad(o.sum(), list(inputs.values()), allow_unused=True)
            assert all(g is None or torch.isfinite(g).all() for g in found)


@given(cases(edges=False, B=2, T=24), st.data())
def test_what_is_not_a_number_stays_in_its_row_and_behind_its_chunk(case: Case, data: st.DataObject) -> None:
    case.state = None  # one in the middle of a mini-batch would move the bounds of chunks
    name = data.draw(st.sampled_from([n for n, x in case.inputs.items() if case.timed(n, x)]))
    at = data.draw(st.integers(0, 23))
    bad = {n: x.clone(memory_format=torch.contiguous_format) for n, x in case.inputs.items()}
    bad[name][1, at] = data.draw(st.sampled_from([torch.nan, torch.inf]))
    for form in case.forms():
        size = {"chunkwise": 8, "parallel": 24}.get(form, 1)
        o, want = (case.run(form, x, chunk_size=8)[0] for x in (bad, case.inputs))
        before = max(
            at - size + 1, 0
        )  # wherever the bounds of chunks are: some rules have mini-batches of their own
        assert not differences(o[0], want[0]), form
        assert not differences(o[1, :before], want[1, :before]), form
