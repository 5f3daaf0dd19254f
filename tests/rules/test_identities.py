"""Identities between rules, and inputs chosen to break them."""

import pytest
import torch
import torch.nn.functional as F

from linrec import rules
from linrec.errors import RangeError
from linrec.rule import validation
from linrec.testing import example_inputs, relative_error
from tests.rules.closeness import assert_near, call_of
from tests.rules.identities import FORMS, inputs_of, same
from tests.rules.loops import LOOPS


def plain(q, k, v, scale):
    return rules.linear_attention(q, k, v, feature_map="identity", normalize=False, scale=scale)


@pytest.mark.parametrize("form", FORMS)
def test_no_decay_is_linear_attention(form):
    x = inputs_of(rules.gla)
    scale, zero = 8**-0.5, torch.zeros_like(x["g"])
    want = plain(x["q"], x["k"], x["v"], scale)
    same(rules.gla.form(form)(**{**x, "g": zero}), want)
    same(rules.retnet.form(form)(x["q"], x["k"], x["v"], zero[0, 0, :, 0]), want)
    same(rules.lightning.form(form)(x["q"], x["k"], x["v"], zero[0, 0, :, 0], scale=scale), want)


def test_mamba2_without_rate_is_linear_attention():
    x = inputs_of(rules.mamba2)
    out = rules.mamba2(x["x"], x["dt"], -1e-300 * torch.ones(4, dtype=torch.float64), x["B"], x["C"])
    same(out, plain(x["C"], x["B"], x["dt"][..., None] * x["x"], 1.0))


@pytest.mark.parametrize("form", FORMS)
def test_no_decay_is_delta_net(form):
    x = inputs_of(rules.gated_delta_net)
    want = rules.delta_net(x["q"], x["k"], x["v"], x["beta"])
    zero = torch.zeros_like(x["g"])
    same(rules.gated_delta_net.form(form)(**{**x, "g": zero}), want)
    wide = zero[..., None].expand(*zero.shape, 8)
    same(rules.kimi_delta_attention.form(form)(**{**x, "g": wide}), want)


@pytest.mark.parametrize("form", FORMS)
def test_equal_channels_are_a_scalar_decay(form):
    x = inputs_of(rules.gated_delta_net)
    wide = x["g"][..., None].expand(*x["g"].shape, 8)
    same(rules.kimi_delta_attention.form(form)(**{**x, "g": wide}), rules.gated_delta_net(**x))
    same(rules.gla.form(form)(x["q"], x["k"], x["v"], wide), rules.gla(x["q"], x["k"], x["v"], x["g"]))


@pytest.mark.parametrize("form", FORMS)
def test_no_writing_only_decays_the_state(form):
    x = inputs_of(rules.kimi_delta_attention)
    state = torch.randn(2, 4, 8, 6, dtype=torch.float64)
    out = rules.kimi_delta_attention.form(form)(**{**x, "beta": torch.zeros_like(x["beta"])}, state=state)
    total = x["g"].cumsum(1).exp()
    q = x["q"].repeat_interleave(2, dim=2) * 8**-0.5
    assert relative_error(out.o, torch.einsum("bthk,bhkv->bthv", q * total, state)) < 1e-12
    assert relative_error(out.state, total[:, -1, :, :, None] * state) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_full_strength_recalls_exactly(form):
    x = inputs_of(rules.gated_delta_net)
    x["beta"] = torch.ones_like(x["beta"])
    out = rules.gated_delta_net.form(form)(x["k"], *list(x.values())[1:], scale=1.0)
    assert relative_error(out.o, x["v"]) < 1e-12


def test_strength_is_absorbed_by_keys_and_values():
    x = inputs_of(rules.delta_net, HV=2)
    root = x["beta"].sqrt()[..., None]
    want = rules.delta_net(**x)
    same(rules.delta_net(x["q"], root * x["k"], root * x["v"], torch.ones_like(x["beta"])), want)


def test_value_heads_are_interleaved_not_tiled():
    x = inputs_of(rules.gated_delta_net)
    spread = {n: x[n].repeat_interleave(2, dim=2) if n in "qk" else x[n] for n in x}
    same(rules.gated_delta_net(**x), rules.gated_delta_net(**spread))
    tiled = {n: x[n].repeat(1, 1, 2, 1) if n in "qk" else x[n] for n in x}
    assert relative_error(rules.gated_delta_net(**tiled).o, rules.gated_delta_net(**x).o) > 0.1


def test_decay_comes_before_prediction():
    """With decay after the prediction the result is another one: the order is pinned."""
    x = inputs_of(rules.kimi_delta_attention, T=2, B=1, H=1, HV=1)
    k, v, g, beta = (x[n][0, :, 0] for n in ("k", "v", "g", "beta"))
    first = beta[0] * torch.outer(k[0], v[0])
    decayed = g[1].exp()[:, None] * first
    before = decayed + beta[1] * torch.outer(k[1], v[1] - decayed.T @ k[1])
    after = decayed + beta[1] * torch.outer(k[1], v[1] - first.T @ k[1])
    state = rules.kimi_delta_attention(**x).state[0, 0]
    assert relative_error(state, before) < 1e-14
    assert relative_error(state, after) > 1e-3


def test_retnet_and_lightning_constants():
    gamma = rules.retnet_decay(3).exp()
    assert torch.allclose(gamma, torch.tensor([1 - 2.0**-5, 1 - 2.0**-6, 1 - 2.0**-7], dtype=torch.float64))
    slopes = -rules.lightning_decay(8)
    assert torch.allclose(slopes, torch.tensor([2.0 ** -(h + 1) for h in range(8)], dtype=torch.float64))
    assert torch.allclose(rules.lightning_decay(8, 3, 7), rules.lightning_decay(8) / 2)


@pytest.mark.parametrize("feature_map", ["elu+1", "exp", "square", "relu"])
def test_normalised_linear_attention_averages_values(feature_map):
    x = inputs_of(rules.linear_attention)
    if feature_map == "relu":  # all features zero at a token would leave nothing to divide by
        x["q"], x["k"] = x["q"].abs(), x["k"].abs()
    ones = torch.ones_like(x["v"])
    out = rules.linear_attention(x["q"], x["k"], ones, feature_map=feature_map)
    assert torch.allclose(out.o, ones)


ADVERSARIAL = {
    "equal keys": lambda x: {"k": F.normalize(torch.ones_like(x["k"]), dim=-1)},
    "positive keys": lambda x: {"k": F.normalize(x["k"].abs(), dim=-1)},
    "zero keys": lambda x: {"k": torch.zeros_like(x["k"])},
    "one zero key": lambda x: {"k": x["k"].index_fill(1, torch.tensor([5]), 0.0)},
    "beta 0": lambda x: {"beta": torch.zeros_like(x["beta"])},
    "beta 1": lambda x: {"beta": torch.ones_like(x["beta"])},
    "beta 2": lambda x: {"beta": torch.full_like(x["beta"], 2.0)},
    "equal keys, beta 2": lambda x: {
        "k": F.normalize(torch.ones_like(x["k"]), dim=-1),
        "beta": torch.full_like(x["beta"], 2.0),
    },
    "g = -50": lambda x: {"g": torch.full_like(x["g"], -50.0)},
    "g = -400": lambda x: {"g": torch.full_like(x["g"], -400.0)},
    "g = 0": lambda x: {"g": torch.zeros_like(x["g"])},
    "resets among weak decays": lambda x: {
        "g": torch.where(torch.rand_like(x["g"]) < 0.2, -400.0, x["g"] / 50)
    },
}


NEEDS = {"beta": "beta", "g =": "g", "resets": "g"}
PAIRS = [
    (name, case)
    for name in ("gated_delta_net", "kimi_delta_attention", "delta_net", "gla", "retnet")
    for case in ADVERSARIAL
    if all(arg in rules.get_rule(name).arguments for word, arg in NEEDS.items() if word in case)
]


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_adversarial_inputs(name, case):
    """Finite and correct, values and gradients, in float64 and float32."""
    torch.manual_seed(0)
    rule = rules.get_rule(name)
    x = inputs_of(rule, T=130, B=1)
    x = {**x, **ADVERSARIAL[case](x)}
    want = LOOPS[name](**x)[0]
    low = LOOPS[name](**{n: t.float() for n, t in x.items()})[0]
    # What one rounding of the strengths does: reflections that follow each other forget nothing.
    rounded = {n: t * (1 + 2**-23) if n == "beta" else t for n, t in x.items()}
    conditioned = relative_error(LOOPS[name](**rounded)[0], want)
    for form in FORMS:
        leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
        out = rule.form(form)(**leaves)
        assert torch.isfinite(out.o).all() and torch.isfinite(out.state).all()
        assert_near(out.o, want, 1e-10, call_of(name, form, x))
        grads = torch.autograd.grad(out.o.square().sum() + out.state.sum(), list(leaves.values()))
        assert all(torch.isfinite(g).all() for g in grads)
        single = rule.form(form)(**{n: t.float() for n, t in x.items()}).o
        budget = 2 * max(relative_error(low, want), conditioned) + 5e-7
        assert_near(single, want, budget, call_of(name, form, x, dtype=torch.float32))


def test_rwkv6_reads_a_state_that_the_current_decay_has_not_touched():
    """The current token enters through u alone, and its decay acts on what later tokens read."""
    x = example_inputs(rules.rwkv6, T=6)
    stronger = x["g"].clone()
    stronger[:, 3] -= 1.0
    for form in ("parallel", "chunkwise", "recurrent"):
        before = rules.rwkv6.form(form)(**x).o
        after = rules.rwkv6.form(form)(**{**x, "g": stronger}).o
        assert torch.equal(before[:, :4], after[:, :4])
        assert (before[:, 4:] - after[:, 4:]).abs().max() > 1e-3
        first = (x["q"] * x["u"][:: x["u"].shape[0] // x["q"].shape[2]] * x["k"])[:, 0].sum(-1, keepdim=True)
        if x["q"].shape[2] == x["v"].shape[2]:
            torch.testing.assert_close(before[:, 0], first * x["v"][:, 0])


@pytest.mark.parametrize("name", ["gated_delta_net", "kimi_delta_attention", "gla", "rwkv6", "rwkv7"])
def test_a_reset_is_a_segment_and_not_an_infinite_decay(name):
    rule = rules.get_rule(name)
    x = example_inputs(rule, T=12, B=1)
    infinite = x["g"].clone()
    infinite[:, 5] = -torch.inf
    with validation(), pytest.raises(RangeError, match="finite natural-log decay"):
        rule(**{**x, "g": infinite})
    whole = rule(**x, cu_seqlens=torch.tensor([0, 5, 12]))
    tail = {n: t[:, 5:] if t.dim() > 1 and t.shape[1] == 12 else t for n, t in x.items()}
    torch.testing.assert_close(whole.o[:, 5:], rule(**tail).o)
    assert whole.state.shape[0] == 2
