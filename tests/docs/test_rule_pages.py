"""The generated pages: their examples run, their identities hold, their pictures are the matrices they say they are."""

import pytest
import torch

from docs.generate.docstrings import to_markdown
from docs.generate.example import example
from docs.generate.facts import floats, lowering_source
from docs.generate.forms import derivation
from docs.generate.identities import IDENTITIES, sides
from docs.generate.page import families, overview, rule_page
from docs.generate.picture import draw, mixing, picture_inputs
from linrec import rules
from linrec.rules import RULES
from linrec.testing import relative_error


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_example_runs(name):
    scope: dict[str, object] = {}
    for _, code in example(RULES[name]):
        exec(compile(code, name, "exec"), scope)


@pytest.mark.parametrize(
    "identity", IDENTITIES, ids=lambda i: f"{i.rule}-{'-'.join(sorted(i.rules - {i.rule}))}"
)
def test_an_identity_holds(identity):
    assert identity.rules <= RULES.keys()
    left, right = sides(identity)
    assert relative_error(left.reshape(right.shape), right) < 1e-10


@pytest.mark.parametrize("name", sorted(RULES))
def test_forms_that_do_not_exist_say_why(name):
    rule = RULES[name]
    text = derivation(rule)
    for form in ("parallel", "chunkwise", "recurrent"):
        section = text.split(f"#### {form.title()}\n", 1)[1].split("####")[0]
        assert section.strip()
        assert ("does not exist" in section) == (form in rule.reasons)
        assert rule.reasons.get(form, "") in section
    assert f"def {name}(" in text and '"""' not in lowering_source(rule)


def test_every_rule_stands_in_one_family_and_in_the_overview():
    members = [rule.name for found in families().values() for rule in found]
    assert sorted(members) == sorted(RULES)
    assert all(f"]({name}.md)" in overview() for name in RULES)


def test_a_page_has_what_the_registry_says():
    page = rule_page(RULES["gated_delta_net"])
    for part in (
        "[arXiv:2412.06464](https://arxiv.org/abs/2412.06464)",
        "| `g` | `[B, T, HV]` | a finite natural-log decay, <= 0 |",
        "default $K^{-1/2}$",
        "16,384 bytes",
        "[`delta_net`](delta_net.md)",
        "[`GatedDeltaNet`](../layers/delta.md#linrec.layers.delta.GatedDeltaNet)",
    ):
        assert part in page, part


@pytest.mark.parametrize("name", ["gated_delta_net", "mamba2", "softmax_attention", "rwkv7", "hgrn2"])
def test_a_signed_picture_is_the_matrix_itself(name):
    """Times random values it gives the rule's output."""
    rule = RULES[name]
    inputs = picture_inputs(rule)
    value = "x" if name == "mamba2" else "v"
    inputs[value] = torch.randn_like(inputs[value])
    found = mixing(rule)
    assert found.signed
    want = rule.recurrent(**inputs).o[0, :, 0]
    assert relative_error(found.matrix @ inputs[value][0, :, 0], want) < 1e-10


def test_a_norm_is_that_of_autograd():
    """Differences against torch's own derivative, for a rule that is not linear in its input."""
    rule = RULES["min_gru"]
    inputs = picture_inputs(rule)
    x = inputs["x"]
    jacobian = torch.autograd.functional.jacobian(lambda x: rules.min_gru(**{**inputs, "x": x}).o, x)
    found = mixing(rule)
    assert not found.signed
    want = jacobian[0, :, :, 0].permute(0, 2, 1, 3).square().sum((2, 3)).sqrt()
    assert relative_error(found.matrix, want) < 1e-6


def test_pictures_are_causal_and_the_same_each_time():
    found = mixing(RULES["kimi_delta_attention"])
    assert not found.matrix.triu(1).any()
    assert draw(found) == draw(found)


def test_state_floats():
    assert floats(RULES["gla"]) == (4096.0, {"K": 64, "V": 64})
    assert floats(RULES["softmax_attention"])[0] == 4096 * 128


def test_docstrings_become_markdown():
    text = "One.\n\n.. code-block:: text\n\n    a;   b\n      c\n\nTwo ``x``, :func:`~linrec.rules.gla`."
    assert to_markdown(text) == "One.\n\n```text\na\nb\n  c\n```\n\nTwo `x`, `rules.gla`."
    assert to_markdown("==  ==\na   b\n==  ==\n") == "```text\na   b\n```"
