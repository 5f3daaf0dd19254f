"""Identities and traps of the composite rules, RWKV, the general delta family and log-linear attention."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from linrec import rules
from linrec.engines.programs.fenwick import LevelState
from linrec.errors import BackendError, DtypeError, ShapeError
from linrec.rules.feature_maps import FEATURE_MAPS, performer, rfa, squares, taylor2
from linrec.state import map_tensors, named_tensors
from linrec.testing import example_inputs, relative_error
from tests.rules.loops import LOOPS

FORMS = ("parallel", "chunkwise", "recurrent")
SCALE = 8**-0.5


def inputs_of(rule, **sizes):
    return example_inputs(rule, **{"T": 70, **sizes})


def close(a, b, limit=1e-12):
    assert relative_error(a, b) < limit


def same(a, b, limit=1e-12):
    close(a.o, b.o, limit)
    close(a.state, b.state, limit)


# RWKV, HGRN2 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_rwkv6_without_decay_and_with_bonus_one_is_linear_attention(form):
    x = inputs_of(rules.rwkv6)
    out = rules.rwkv6.form(form)(**{**x, "g": torch.zeros_like(x["g"]), "u": torch.ones_like(x["u"])})
    same(out, rules.linear_attention(x["q"], x["k"], x["v"], feature_map="identity", normalize=False))


def test_rwkv6_reads_the_state_before_the_decay_of_its_token():
    """gla one step late: the exclusive read-out is the inclusive one of the token before, plus the bonus."""
    x = inputs_of(rules.rwkv6, HV=2)
    late: dict[str, Any] = {n: F.pad(x[n], (0, 0, 0, 0, 1, -1)) for n in ("k", "v", "g")}
    bonus = (x["q"] * x["u"] * x["k"]).sum(-1, keepdim=True) * x["v"]
    close(rules.rwkv6(**x).o, rules.gla(x["q"], **late, scale=1.0).o + bonus)
    first = rules.rwkv6(**{n: t[:, :1] if n != "u" else t for n, t in x.items()}).o
    close(first, bonus[:, :1])


def test_rwkv5_is_rwkv6_with_a_constant_decay():
    x = inputs_of(rules.rwkv5)
    same(rules.rwkv5(**x), rules.rwkv6(**{**x, "g": x["g"].expand(2, 70, -1, -1)}))


def test_hgrn2_is_gla_with_a_tied_key_and_averages_values():
    x = inputs_of(rules.hgrn2)
    out = rules.hgrn2(**x)
    key = 1 - x["g"].exp()
    same(out, rules.gla(x["q"].repeat_interleave(2, 2), key, x["v"], x["g"]))
    assert out.state.abs().max() <= x["v"].abs().max()
    tiny = torch.full_like(x["g"], -1e-12)  # 1 - e^g would have four digits left
    key = rules.hgrn2(**{**x, "g": tiny}, scale=1e12).o
    close(key, rules.gla(x["q"].repeat_interleave(2, 2), -tiny * 1e12, x["v"], tiny, scale=1.0).o, 1e-11)


# the delta family --------------------------------------------------------------------------------


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


# programs of several calls -----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_mlstm_does_not_depend_on_the_units_of_its_state(form):
    x = inputs_of(rules.mlstm)
    before = rules.mlstm(**inputs_of(rules.mlstm, T=9)).state
    moved = before._replace(memory=before.memory * math.exp(-3), m=before.m + 3)
    close(rules.mlstm.form(form)(**x, state=moved).o, rules.mlstm(**x, state=before).o)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gate", [800.0, -800.0, 1e4])
def test_mlstm_takes_any_input_gate(form, gate):
    x = {n: t.requires_grad_() for n, t in inputs_of(rules.mlstm).items()}
    extreme = torch.where(torch.arange(70)[:, None] % 7 == 3, gate, x["i"])
    out = rules.mlstm.form(form)(**{**x, "i": extreme})
    assert all(torch.isfinite(t).all() for _, t in named_tensors(tuple(out)))
    close(out.o, LOOPS["mlstm"](**{**x, "i": extreme})[0], 1e-10)
    grads = torch.autograd.grad(out.o.square().sum(), list(x.values()))
    assert all(torch.isfinite(g).all() for g in grads)


def test_mlstm_keeps_its_precision_under_large_gates():
    x = {n: t.float() for n, t in inputs_of(rules.mlstm).items()}
    x["i"] = torch.where(torch.arange(70)[:, None] % 7 == 3, 1e4, x["i"])
    want = rules.mlstm(**{n: t.double() for n, t in x.items()}).o
    close(rules.mlstm(**x).o, want, 1e-5)


def test_mlstm_floor_is_one_in_true_units():
    """A weak input stays weak: h = S^T q / 1, not normalised up by a floor in stored units."""
    x = inputs_of(rules.mlstm, T=1)
    x["i"] = torch.full_like(x["i"], -20.0)
    product = (x["q"] * x["k"]).sum(-1).repeat_interleave(2, 2) * SCALE
    close(rules.mlstm(**x).o, math.exp(-20) * product[..., None] * x["v"])


def test_dfw_without_value_decay_is_gla_and_decays_add():
    x = inputs_of(rules.dfw)
    same(rules.dfw(**{**x, "h": torch.zeros_like(x["h"])}), rules.gla(x["q"], x["k"], x["v"], x["g"]))
    h = x["h"][..., :1]
    out = rules.dfw(**{**x, "h": h.expand_as(x["h"])})
    same(out, rules.gla(x["q"], x["k"], x["v"], x["g"] + h))


def test_gateloop_without_rotation_is_gla_and_a_full_turn_is_none():
    x = inputs_of(rules.gateloop)
    want = rules.gla(x["q"], x["k"], x["v"], x["g"].repeat_interleave(2, -1), scale=1.0)
    same(rules.gateloop(**{**x, "theta": torch.zeros_like(x["theta"])}), want)
    same(rules.gateloop(**{**x, "theta": torch.full_like(x["theta"], 2 * math.pi)}), want)
    with pytest.raises(ShapeError, match="K must be 2 J, got K=8, J=3"):
        rules.gateloop(**{**x, "g": x["g"][..., :3], "theta": x["theta"][..., :3]})


@pytest.mark.parametrize("form", FORMS)
def test_mamba3_limits(form):
    x = inputs_of(rules.mamba3)
    still = {**x, "lam": torch.ones_like(x["lam"]), "theta": torch.zeros_like(x["theta"])}
    shared = {n: x[n] for n in ("x", "dt", "A", "B", "C", "D")}
    want = rules.mamba2(**shared)
    out = rules.mamba3.form(form)(**still)
    close(out.o, want.o)
    close(out.state.memory, want.state)
    with pytest.raises(ShapeError, match="J must be at most N / 2"):
        rules.mamba3(**{**x, "theta": x["theta"].repeat(1, 1, 1, 2)})


def test_mamba3_trapezoid_is_two_shifted_mamba2():
    """Without rotation: the present token with weight lam dt, the one before with (1 - lam) dt and one decay more."""
    x = inputs_of(rules.mamba3, G=4)
    x["theta"] = torch.zeros_like(x["theta"])
    g = x["dt"] * x["A"]
    v = F.pad(x["x"], (0, 0, 0, 0, 1, -1))
    k = F.pad(x["B"], (0, 0, 0, 0, 1, -1))
    now = rules.gla(x["C"], x["B"], (x["lam"] * x["dt"])[..., None] * x["x"], g, scale=1.0).o
    past = rules.gla(x["C"], k, ((1 - x["lam"]) * x["dt"] * g.exp())[..., None] * v, g, scale=1.0).o
    close(rules.mamba3(**x).o, now + past + x["D"][:, None] * x["x"])


@pytest.mark.parametrize("form", FORMS)
def test_mamba3_of_rank_one_is_the_single_form(form):
    x = inputs_of(rules.mamba3_mimo, R=1)
    single = {n: t for n, t in x.items() if n != "mimo_x"} | {n: x[n].squeeze(3) for n in ("B", "C")}
    x["mimo_x"] = torch.ones_like(x["mimo_x"])
    before = rules.mamba3(**{**single, "x": single["x"].flip(1)}).state
    out = rules.mamba3_mimo.form(form)(**x, state=before._replace(k=before.k[:, :, None]))
    want = rules.mamba3.form(form)(**single, state=before)
    close(out.o.squeeze(3), want.o)
    close(out.state.memory, want.state.memory)
    close(out.state.k.squeeze(2), want.state.k)


def test_mamba3_of_rank_r_is_the_sum_of_its_pairs():
    """Query r meets key s and its values in one single-rank call; R squared of them make the rule."""
    x = inputs_of(rules.mamba3_mimo, R=3)
    shared = {n: x[n] for n in ("dt", "A", "lam", "theta")}
    out = rules.mamba3_mimo(**x)
    skip = x["D"][:, None, None] * x["x"][:, :, :, None] * x["mimo_x"]
    for r in range(3):
        pairs = (
            rules.mamba3(x=x["x"] * x["mimo_x"][:, s], B=x["B"][..., s, :], C=x["C"][..., r, :], **shared).o
            for s in range(3)
        )
        close(out.o[..., r, :], sum(pairs) + skip[..., r, :])


def test_mamba3_ranks_do_not_depend_on_their_order():
    """All R pairs of a token are written before any of its queries reads."""
    x = inputs_of(rules.mamba3_mimo)
    turned = {**x, "B": x["B"].flip(3), "C": x["C"].flip(3), "mimo_x": x["mimo_x"].flip(1)}
    for form in FORMS:
        close(rules.mamba3_mimo.form(form)(**turned).o.flip(3), rules.mamba3_mimo(**x).o)
    with pytest.raises(ShapeError, match="mamba3_mimo: J must be at most N / 2"):
        rules.mamba3_mimo(**{**x, "theta": x["theta"].repeat(1, 1, 1, 2)})


def test_one_slot_is_an_average():
    x = inputs_of(rules.abc, M=1)
    weight = x["z"].cumsum(1) * 0 + x["z"].exp()
    want = (weight * x["v"]).cumsum(1) / weight.cumsum(1)
    close(rules.abc(**x).o, want)
    big = rules.abc(**{**x, "z": x["z"] + 1e4})
    close(big.o, want, 1e-9)


def test_abc_is_gated_slot_attention_with_its_own_decay():
    x = inputs_of(rules.abc)
    total = x["z"].logcumsumexp(1)
    g = F.pad(total[:, :-1] - total[:, 1:], (0, 0, 0, 0, 1, 0), value=-800.0)  # the first write is whole
    out = rules.gated_slot_attention(x["q"], x["k"], x["v"], g)
    close(rules.abc(**x).o, out.o)


@pytest.mark.parametrize("strongest", [-1.0, -4.6, -7.0, -800.0])
def test_rwkv5_with_channels_that_forget_at_once(strongest):
    """Constant decays too strong for any frame beside one that hardly decays: forward and gradients."""
    x = inputs_of(rules.rwkv5)
    x["g"] = torch.linspace(-1e-3, strongest, x["g"].numel(), dtype=torch.float64).view_as(x["g"])
    leaves = [t.requires_grad_() for t in x.values()]
    want = LOOPS["rwkv5"](*leaves)[0]
    slopes = torch.autograd.grad(want.square().sum(), leaves)
    for length in (None, 10, 40):
        got = rules.rwkv5(*leaves, chunk_size=length).o
        close(got, want, 1e-11)
        pairs = zip(torch.autograd.grad(got.square().sum(), leaves), slopes, strict=True)
        assert all(relative_error(a, b) < 1e-10 for a, b in pairs)


# MesaNet -----------------------------------------------------------------------------------------


def test_mesa_net_without_decay_is_recursive_least_squares():
    x = inputs_of(rules.mesa_net, T=30, B=1, H=1, HV=1)
    x["g"] = torch.zeros_like(x["g"])
    q, k, v, beta = (x[n][0, :, 0] for n in ("q", "k", "v", "beta"))
    P, W, rows = torch.diag(1 / x["lam"][0]), torch.zeros(8, 6, dtype=torch.float64), []
    for t in range(30):
        Pk = P @ k[t]
        P = P - beta[t] * torch.outer(Pk, Pk) / (1 + beta[t] * k[t] @ Pk)
        W = W + beta[t] * torch.outer(P @ k[t], v[t] - W.T @ k[t])
        rows.append(W.T @ q[t])
    for form in FORMS:
        close(rules.mesa_net.form(form)(**x).o[0, :, 0], torch.stack(rows), 1e-10)


def test_mesa_net_with_a_large_ridge_is_gated_linear_attention():
    x = inputs_of(rules.mesa_net)
    ridge = torch.full_like(x["lam"], 1e8)
    out = rules.mesa_net(**{**x, "lam": ridge}).o * 1e8
    close(out, rules.gla(x["q"], x["k"], x["beta"][..., None] * x["v"], x["g"], scale=1.0).o, 1e-6)


def test_mesa_net_gradient_is_implicit_and_has_derivatives():
    x = {n: t.requires_grad_() for n, t in inputs_of(rules.mesa_net, T=20).items()}
    few = torch.autograd.grad(rules.mesa_net(**x, iterations=12).o.square().sum(), list(x.values()))
    many = torch.autograd.grad(rules.mesa_net(**x, iterations=60).o.square().sum(), list(x.values()))
    assert all(relative_error(a, b) < 1e-8 for a, b in zip(few, many, strict=True))
    found = []
    for form in (rules.mesa_net.chunkwise, rules.mesa_net.recurrent):  # the other one solves directly
        grads = torch.autograd.grad(form(**x).o.square().sum(), list(x.values()), create_graph=True)
        total = torch.stack([g.square().sum() for g in grads]).sum()
        found.append(torch.autograd.grad(total, list(x.values())))
    assert all(relative_error(a, b) < 1e-8 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda s: s.memory, DtypeError, "state must be a LevelState, got Tensor"),
        (lambda s: s._replace(memory=s.memory[:, :3]), ShapeError, r"state.memory must be \[2, 9, 4, 8, 6\]"),
        (lambda s: s._replace(seen=s.seen.double()), DtypeError, "state.seen must be integer"),
    ],
)
def test_composite_states_are_checked(change, error, text):
    x = inputs_of(rules.log_linear_attention, T=3)
    with pytest.raises(error, match=text):
        rules.log_linear_attention(**x, state=change(rules.log_linear_attention(**x).state))


def test_a_program_has_no_kernel_of_its_own():
    with pytest.raises(BackendError, match="composed of several engine calls"):
        rules.mlstm(**inputs_of(rules.mlstm), backend="triton")


# log-linear --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [2, 4, 9])
def test_equal_level_weights_give_the_rule_below(form, levels):
    x = inputs_of(rules.log_linear_gated_delta, L=levels)
    x["lam"] = torch.ones_like(x["lam"])
    gated = {n: x[n] for n in ("q", "k", "v", "g", "beta")}
    out = rules.log_linear_gated_delta.form(form)(**x)
    want = rules.gated_delta_net(**gated)
    close(out.o, want.o)
    close(out.state.memory.sum(1), want.state)
    del x["beta"], gated["beta"]
    close(rules.log_linear_attention.form(form)(**x).o, rules.gla(**gated).o)


@pytest.mark.parametrize("levels", [1, 3, 9])
@pytest.mark.parametrize("name", ["log_linear_attention", "log_linear_gated_delta"])
def test_rows_at_different_places_merge_their_levels_by_themselves(name, levels):
    """Row 0 goes on after 3 tokens, row 1 after 24: what the next token sees at which level differs."""
    rule = rules.get_rule(name)
    x = inputs_of(rule, T=70, L=levels, H=1, HV=2)
    alone = []
    for row, before in enumerate((3, 24)):
        mine = {n: t[row : row + 1] for n, t in x.items()}
        state = rule.recurrent(**{n: t[:, :before].flip(1) for n, t in mine.items()}).state
        alone.append((state, LOOPS[name](**mine, state=state)))
    state = LevelState(*(torch.cat(parts) for parts in zip(*(state for state, _ in alone), strict=True)))
    for chunk in (1, 16, 64):
        o, last = rule.chunkwise(**x, state=state, chunk_size=chunk)
        for row, (_, (want, after)) in enumerate(alone):
            close(o[row : row + 1], want)
            close(last.memory[row : row + 1], after[0])
            assert last.seen[row] == (3, 24)[row] + 70


def test_level_weights_belong_to_the_query_and_its_buckets():
    """From the article's definition: bit b of t set and j in [t_b, t_b + 2^b), t_b = t with bits b .. 0 cleared."""
    x = inputs_of(rules.log_linear_attention, T=37, B=1, H=1, HV=1)
    weight = torch.zeros(37, 37, dtype=torch.float64)
    for t in range(37):
        weight[t, t] = x["lam"][0, t, 0, 0]
        for b in range(6):
            if t >> b & 1:
                start = (t >> (b + 1)) << (b + 1)
                weight[t, start : start + 2**b] = x["lam"][0, t, 0, 1 + b]
    total = x["g"][0, :, 0].cumsum(0)
    decay = (total[:, None] - total).masked_fill(torch.ones(37, 37).triu(1).bool(), -torch.inf).exp()
    q, k, v = (x[n][0, :, 0] for n in ("q", "k", "v"))
    want = (q @ k.T * SCALE * decay * weight) @ v
    for form in FORMS:
        close(rules.log_linear_attention.form(form)(**x).o[0, :, 0], want)


# feature maps ------------------------------------------------------------------------------------


def test_polynomial_feature_maps_are_exact_kernels():
    q, k = torch.randn(2, 11, 8, dtype=torch.float64).unbind(0)
    s = q @ k.T / 8**0.5
    close(taylor2(q) @ taylor2(k).T, 1 + s + s**2 / 2)
    assert taylor2(q).shape[-1] == 1 + 8 + 36
    close(squares(q) @ squares(k).T, (q @ k.T) ** 2)


def test_random_features_are_unbiased():
    """The expectation over normal rows, by Gauss-Hermite quadrature instead of sampling."""
    np = pytest.importorskip("numpy")
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(48))
    omega = torch.cartesian_prod(nodes, nodes)
    share = (weights[:, None] * weights).flatten() / (2 * math.pi) * omega.shape[0]
    q, k = torch.randn(2, 5, 2, dtype=torch.float64).unbind(0)
    close((performer(q, omega, False) * share) @ performer(k, omega, False).T, (q @ k.T).exp(), 1e-8)
    double = share.repeat(2)
    distance = (q[:, None] - k).square().sum(-1)
    close((rfa(q, omega) * double) @ rfa(k, omega).T, (-distance / 2).exp(), 1e-8)


@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize("form", FORMS)
def test_every_feature_map_in_every_form(name, form):
    x = inputs_of(rules.linear_attention)
    omega = torch.randn(12, 8, dtype=torch.float64) if name in ("performer", "rfa") else None
    x["q"], x["k"] = x["q"].abs() / 3, x["k"].abs() / 3
    how = {"feature_map": name, "projection": omega}
    whole = rules.linear_attention.form(form)(**x, **how)
    head, state = rules.linear_attention(*(t[:, :30] for t in x.values()), **how)
    tail = rules.linear_attention(*(t[:, 30:] for t in x.values()), **how, state=state)
    close(torch.cat([head, tail.o], 1), whole.o, 1e-10)
    ones = rules.linear_attention(x["q"], x["k"], torch.ones_like(x["v"]), **how)
    close(ones.o, torch.ones_like(ones.o))


def test_projections_are_checked():
    x = inputs_of(rules.linear_attention)
    with pytest.raises(ShapeError, match=r"needs projection \[M, K=8\], got None"):
        rules.linear_attention(**x, feature_map="performer")
    with pytest.raises(ShapeError, match="takes no projection"):
        rules.linear_attention(**x, projection=torch.ones(3, 8))


# hard inputs -------------------------------------------------------------------------------------

HARD = {
    "equal keys": lambda x: {"k": F.normalize(torch.ones_like(x["k"]), dim=-1)},
    "positive keys": lambda x: {"k": F.normalize(x["k"].abs(), dim=-1)},
    "zero keys": lambda x: {"k": torch.zeros_like(x["k"])},
    "g = -400": lambda x: {"g": torch.full_like(x["g"], -400.0)},
    "g = 0": lambda x: {"g": torch.zeros_like(x["g"])},
    "resets among weak decays": lambda x: {
        "g": torch.where(torch.rand_like(x["g"]) < 0.2, -400.0, x["g"] / 50)
    },
}
FAMILY = (
    *(
        "rwkv6",
        "rwkv7",
        "weight_decay_delta",
        "comba",
        "gated_delta_net_2",
        "delta_product",
        "momentum_delta",
    ),
    *(
        "mlstm",
        "gated_slot_attention",
        "dfw",
        "gateloop",
        "mesa_net",
        "log_linear_gated_delta",
        "block_delta",
    ),
)


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("name", FAMILY)
def test_hard_inputs(name, case):
    torch.manual_seed(0)
    rule = rules.get_rule(name)
    x = inputs_of(rule, B=1, H=1, HV=2)
    for step in ("eta", "beta"):
        if name in ("block_delta", "weight_decay_delta", "comba", "momentum_delta") and step in x:
            x[step] = x[step] / 8  # keys may be equal: keep the rule itself stable
    x |= HARD[case](x)
    want = tuple(LOOPS[name](**x))
    for form in FORMS:
        leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
        o, state = rule.form(form)(**leaves)
        assert torch.isfinite(o).all()
        assert relative_error(o, want[0]) < 1e-9
        total = o.square().sum() + sum(s.sum() for _, s in named_tensors(state) if s.is_floating_point())
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(total, list(leaves.values())))
        single = rule.form(form)(**{n: t.float() for n, t in x.items()})
        assert all(torch.isfinite(s).all() for _, s in named_tensors(map_tensors(lambda s: s, tuple(single))))
