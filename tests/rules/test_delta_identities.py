"""The general delta family: which of its members become each other, and where they differ."""

import math

import pytest
import torch

from linrec import rules
from linrec.testing import relative_error
from tests.rules.identities import FORMS, close, inputs_of, same


@pytest.mark.parametrize("form", FORMS)
def test_general_delta_contains_the_gated_ones(form):
    x = inputs_of(rules.kimi_delta_attention, HV=2)
    beta = x["beta"][..., None]
    a = -beta * x["g"].exp() * x["k"]
    out = rules.generalized_delta.form(form)(x["q"], x["k"], beta * x["v"], a, x["k"], x["g"])
    same(out, rules.kimi_delta_attention(**x))
    out = rules.generalized_delta.form(form)(x["q"], x["k"], beta * x["v"], -beta * x["k"], x["k"])
    same(out, rules.delta_net(x["q"], x["k"], x["v"], x["beta"]))


def test_rwkv7_is_a_general_delta_of_undecayed_prediction():
    x = inputs_of(rules.rwkv7, HV=2)
    same(
        rules.rwkv7(**x),
        rules.generalized_delta(
            x["q"], x["k"], x["v"], -x["kappa"], x["eta"] * x["kappa"], x["g"], scale=1.0
        ),
    )


def test_gated_delta_and_weight_decay_delta_differ_in_order_only():
    x = inputs_of(rules.gated_delta_net)
    x["g"] = x["g"] / 4
    alpha = x["g"].exp()
    want = rules.gated_delta_net(**x)
    same(rules.weight_decay_delta(x["q"], x["k"], x["v"] / alpha[..., None], x["g"], alpha * x["beta"]), want)
    assert relative_error(rules.weight_decay_delta(**x).o, want.o) > 1e-2


def test_comba_without_feedback_loss_is_weight_decay_delta():
    x = inputs_of(rules.comba)
    ones = torch.ones_like(x["d"])
    want = rules.weight_decay_delta(*(x[n] for n in ("q", "k", "v", "g", "beta")))
    same(rules.comba(**{**x, "d": ones, "D": None}), want)
    same(rules.comba(**{**x, "d": ones, "D": 0 * ones}), want)


def test_gated_delta_net_2_limits():
    x = inputs_of(rules.gated_delta_net_2)
    beta = x["erase"][..., :1]
    out = rules.gated_delta_net_2(
        **{**x, "erase": beta.expand_as(x["erase"]), "write": beta.expand_as(x["write"])}
    )
    same(out, rules.kimi_delta_attention(x["q"], x["k"], x["v"], x["g"], beta[..., 0]))
    out = rules.gated_delta_net_2(**{**x, "erase": 0 * x["erase"]})
    same(out, rules.gla(x["q"], x["k"], x["write"] * x["v"], x["g"]))


def test_longhorn_is_a_delta_rule_that_no_key_upsets():
    x = inputs_of(rules.longhorn_delta)
    norm = x["k"].square().sum(-1).repeat_interleave(2, 2)
    same(
        rules.longhorn_delta(**x), rules.delta_net(x["q"], x["k"], x["v"], x["beta"] / (1 + x["beta"] * norm))
    )
    out = rules.longhorn_delta(**{**x, "k": 100 * x["k"]})
    assert out.state.abs().max() < 10 * x["v"].abs().max()


def one_step(x, *names):
    return {n: t.narrow(3, 0, 1) if n in names else t for n, t in x.items()}


@pytest.mark.parametrize("form", FORMS)
def test_one_micro_step_is_the_plain_rule(form):
    x = one_step(inputs_of(rules.delta_product), "k", "v", "beta")
    plain = {n: t.squeeze(3) if n in ("k", "v", "beta") else t for n, t in x.items()}
    same(rules.delta_product.form(form)(**x), rules.gated_delta_net(**plain))
    plain["beta"] = plain["beta"] / 2
    pair = {n: plain[n] for n in ("q", "k", "v", "g")}
    out = rules.block_delta.form(form)(x["q"], x["k"], x["v"], x["g"], x["beta"] / 2)
    same(out, rules.weight_decay_delta(**pair, beta=plain["beta"]))
    out = rules.omega.form(form)(**pair, eta=plain["beta"][..., None])
    close(out.o, rules.weight_decay_delta(**pair, beta=plain["beta"]).o)


def test_simultaneous_updates_differ_from_successive_ones():
    x = inputs_of(rules.block_delta)
    successive = rules.delta_product(x["q"], x["k"], x["v"], x["g"], x["eta"])
    assert relative_error(rules.block_delta(**x).o, successive.o) > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_two_reflections_turn_the_state(form):
    """beta = 2 reflects; two mirrors at half the angle rotate by it. Parity needs one reflection a token."""
    angle = 0.3
    mirrors = torch.tensor([[1.0, 0.0], [math.cos(angle / 2), math.sin(angle / 2)]], dtype=torch.float64)
    length = 9
    k = mirrors.expand(1, length, 1, 2, 2)
    zero = torch.zeros(1, length, 1, 2, 1, dtype=torch.float64)
    q = torch.eye(2, dtype=torch.float64)[0].expand(1, length, 1, 2)
    start = torch.tensor([[1.0], [0.0]], dtype=torch.float64)[None, None]
    o = rules.delta_product.form(form)(
        q, k, zero, zero[..., 0, 0], torch.full_like(zero[..., 0], 2.0), state=start, scale=1.0
    ).o
    steps = torch.arange(1, length + 1, dtype=torch.float64)
    close(o.flatten(), torch.cos(angle * steps))
    flips = rules.delta_product.form(form)(
        q, k[:, :, :, :1], zero[:, :, :, :1], zero[..., 0, 0], torch.full_like(zero[..., :1, 0], 2.0),
        state=start, scale=1.0,
    )  # fmt: skip
    close(flips.o.flatten(), (-1.0) ** steps)


def test_no_momentum_is_weight_decay_delta():
    x = inputs_of(rules.momentum_delta)
    x["eta"], none = x["eta"] / 2, torch.full_like(x["h"], -800.0)
    out = rules.momentum_delta(x["q"], x["k"], x["v"], x["g"], none, x["eta"], torch.ones_like(x["beta"]))
    want = rules.weight_decay_delta(x["q"], x["k"], x["v"], x["g"], x["eta"])
    close(out.o, want.o)
    close(out.state.memory, want.state)
