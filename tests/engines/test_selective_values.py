"""Selective scans without derivatives: chunks in memory that is used again, and one token in its own state."""

import itertools
from typing import Any

import pytest
import torch

from linrec import rules
from linrec.donation import donation
from linrec.engines.diagonal import DIAGONAL
from linrec.engines.diagonal.selective import selective_terms
from linrec.rule import Call
from linrec.testing import example_inputs, example_state, relative_error
from tests.rules.loops import LOOPS

NAMES = ["mamba", "longhorn"]


@pytest.mark.parametrize(("length", "chunk"), [(1, None), (2, 1), (7, 3), (65, None), (65, 16), (65, 100)])
@pytest.mark.parametrize("wide", [False, True], ids=["blocks", "positions"])
@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_loop(name, wide, length, chunk):
    rule = rules.get_rule(name)
    sizes: Any = {"D": 600, "N": 8} if wide else {}
    x = example_inputs(rule, T=length, **sizes)
    state = example_state(rule, x)
    before = state.clone()
    want, last = LOOPS[name](**x, state=state, scale=0.7)
    with torch.no_grad():
        got = rule.chunkwise(**x, state=state, scale=0.7, chunk_size=chunk)
    assert relative_error(got.o, want) < 1e-12 and relative_error(got.state, last) < 1e-12
    assert torch.equal(state, before)


@pytest.mark.parametrize("name", NAMES)
def test_packed_values(name):
    rule, bounds = rules.get_rule(name), [0, 5, 5, 40, 41, 60]
    x = example_inputs(rule, T=60, B=1)
    timed = {n for n, arg in rule.arguments.items() if "T" in arg.shapes[0]}
    state = example_state(rule, x, segments=5)
    with torch.no_grad():
        got = rule(**x, state=state, cu_seqlens=torch.tensor(bounds))
    for row, (a, b) in enumerate(itertools.pairwise(bounds)):
        part = {n: v[:, a:b] if n in timed else v for n, v in x.items()}
        if a < b:
            want, last = LOOPS[name](**part, state=state[row : row + 1])
            assert relative_error(got.o[:, a:b], want) < 1e-12
        else:
            last = state[row : row + 1]
        assert relative_error(got.state[row : row + 1], last) < 1e-12


@pytest.mark.parametrize("exponential", [False, True])
@pytest.mark.parametrize("constant", ["rate", "into", "out"])
def test_every_factor_may_be_constant_in_time(constant, exponential):
    shapes = dict.fromkeys(("rate", "into", "out"), (2, 9, 3)) | {constant: (4, 3)}
    factors = {n: torch.randn(shape, dtype=torch.float64) for n, shape in shapes.items()}
    factors["rate"] = -factors["rate"].abs()
    step, x = torch.rand(2, 9, 4, dtype=torch.float64), torch.randn(2, 9, 4, dtype=torch.float64)
    with torch.no_grad():
        terms = selective_terms(step, x, **factors, exponential=exponential)
        got, last = DIAGONAL.run(terms, None, Call("chunkwise", 1.0, None, 4, "torch"), "test")
    h = torch.zeros(2, 4, 3, dtype=torch.float64)
    for t in range(9):
        now = {n: y if y.dim() == 2 else y[:, t, None] for n, y in factors.items()}
        exponent = step[:, t, :, None] * now["rate"]
        h = (exponent.exp() if exponential else 1 + exponent) * h
        h = h + (step * x)[:, t, :, None] * now["into"]
        assert relative_error(got[:, t], (h * now["out"]).sum(-1)) < 1e-12
    assert relative_error(last, h) < 1e-12


def test_values_of_no_tokens():
    x = example_inputs(rules.mamba, T=0)
    with torch.no_grad():
        o, state = rules.mamba.chunkwise(**x)
    assert o.shape == (2, 0, 4) and not state.any()


@pytest.mark.parametrize("name", NAMES)
def test_one_token_is_written_over_a_state_that_is_given_away(name):
    rule = rules.get_rule(name)
    x = example_inputs(rule, T=1)
    state = example_state(rule, x)
    want, last = LOOPS[name](**x, state=state.clone())
    with torch.no_grad(), donation(state) as given:
        o, after = rule.step(**x, state=state)
    assert given.begun and after.data_ptr() == state.data_ptr()
    assert relative_error(o, want) < 1e-12 and relative_error(state, last) < 1e-12


def test_a_state_that_is_given_away_stays_where_gradients_are_wanted():
    x = example_inputs(rules.mamba, T=1)
    state = example_state(rules.mamba, x)
    before = state.clone()
    with donation(state) as given:
        rules.mamba.step(**x, state=state)
    assert not given.begun and torch.equal(state, before)
