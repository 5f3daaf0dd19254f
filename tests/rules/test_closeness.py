"""A failure against a loop names rule, form, shape and error."""

import re

import pytest

from tests.rules import test_edge_values, test_forms
from tests.rules.loops import LOOPS

CALLS = {
    "test_forms_equal_the_loop": (2, False),
    "test_scale_is_the_same_factor_in_every_form": (),
    "test_gradients_equal_those_of_the_loop": (False,),
    "test_forward_mode": (),
}


def wrong(loop):
    def off(*args, **kwargs):
        o, state = loop(*args, **kwargs)
        return o * 1.001, state

    return off


@pytest.mark.parametrize("test", CALLS)
@pytest.mark.parametrize("name", ["gated_delta_net", "titans", "log_linear_attention"])
def test_a_wrong_loop_is_reported_with_what_it_takes_to_run_it_again(monkeypatch, name, test):
    monkeypatch.setitem(LOOPS, name, wrong(LOOPS[name]))
    with pytest.raises(AssertionError) as failed:
        getattr(test_forms, test)(name, *CALLS[test])
    said = str(failed.value)
    assert re.search(rf"{name}\.(parallel|chunkwise)\(q \[2, \d+, 2, 8\]", said), said
    assert re.search(r"\[[\d, ]+\] has the relative error [1-9]\.\d\de-0[34], not below 1e-10", said), said


def test_a_wrong_shape_is_reported(monkeypatch):
    loop = LOOPS["gla"]
    monkeypatch.setitem(LOOPS, "gla", lambda **x: (loop(**x)[0][:, 1:], loop(**x)[1]))
    with pytest.raises(
        AssertionError, match=r"gla\.parallel\(.*: o has the shape \[2, 2, 4, 6\], not \[2, 1, 4, 6\]"
    ):
        test_forms.test_forms_equal_the_loop("gla", 2, False)


def test_resets_are_reported(monkeypatch):
    monkeypatch.setitem(LOOPS, "gla", wrong(LOOPS["gla"]))
    with pytest.raises(AssertionError, match=r"gla\.\w+\(q \[2, 13, 1, 8\].*relative error"):
        test_edge_values.test_a_strong_decay_costs_its_neighbours_no_digits("gla", "g", -1e4)
