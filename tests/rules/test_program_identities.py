"""Rules that are several engine calls: limits, identities, states."""

import math

import pytest
import torch
import torch.nn.functional as F

from linrec import rules
from linrec.errors import BackendError, DtypeError, ShapeError
from linrec.state import named_tensors
from linrec.testing import relative_error
from tests.rules.identities import FORMS, close, inputs_of, same
from tests.rules.loops import LOOPS

SCALE = 8**-0.5


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
