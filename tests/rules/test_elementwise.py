"""Identities and traps of the elementwise rules, of RWKV-4 and of sLSTM."""

import pytest
import torch
import torch.nn.functional as F

from linrec import rules
from linrec.engines.numerics.discretization import expm1
from linrec.errors import FormError, UnknownNameError
from linrec.testing import example_inputs, relative_error
from tests.rules.loops_elementwise import true_rwkv4

FORMS = ("parallel", "chunkwise", "recurrent")


def inputs_of(rule, **sizes):
    return example_inputs(rule, **{"T": 70, **sizes})


@pytest.mark.parametrize("form", FORMS)
def test_mamba_with_one_rate_and_one_step_is_mamba2(form):
    x = inputs_of(rules.mamba)
    dt, rate = x["dt"][..., :1], -torch.ones((), dtype=torch.float64) / 3
    got = rules.mamba.form(form)(
        x["x"], dt.expand_as(x["dt"]), rate.expand_as(x["A"]), x["B"], x["C"], x["D"]
    )
    b, c = (z[:, :, None] for z in (x["B"], x["C"]))
    want = rules.mamba2(x["x"][:, :, None], dt, rate[None], b, c)
    assert relative_error(got.o, want.o[:, :, 0] + x["D"] * x["x"]) < 1e-12
    assert relative_error(got.state, want.state[:, 0].mT) < 1e-12


def test_mamba_is_one_gated_linear_attention_a_channel():
    x = inputs_of(rules.mamba)
    got = rules.mamba(x["x"], x["dt"], x["A"], x["B"], x["C"])
    for d in range(4):
        dt = x["dt"][..., d, None, None]
        want = rules.gla(
            x["C"][:, :, None], x["B"][:, :, None], dt * x["x"][..., d, None, None], dt * x["A"][d], scale=1.0
        )
        assert relative_error(got.o[..., d], want.o[..., 0, 0]) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_gated_units_are_one_recurrence(form):
    x = inputs_of(rules.sru)
    want = rules.hgrn(x["x"], x["g"])
    assert relative_error(rules.qrnn.form(form)(x["x"], x["g"]).o, want.o) < 1e-13
    o, i = x["r"], -torch.expm1(x["g"])
    assert relative_error(rules.qrnn.form(form)(x["x"], x["g"], o).o, o * want.o) < 1e-13
    assert relative_error(rules.qrnn.form(form)(x["x"], x["g"], o, i).o, o * want.o) < 1e-13
    through = rules.sru.form(form)(x["x"], x["g"], torch.ones_like(o), x["y"])
    assert relative_error(through.o, want.o) < 1e-13
    past = rules.sru.form(form)(x["x"], x["g"], torch.zeros_like(o), x["y"])
    assert torch.equal(past.o, x["y"])


def test_hgrn_averages():
    """Each state is a convex combination of the inputs once the initial state is forgotten."""
    x = inputs_of(rules.hgrn)
    ones = torch.ones_like(x["x"])
    assert torch.allclose(rules.hgrn(ones, x["g"], state=ones[:, 0]).o, ones)


def test_min_gru_and_min_lstm_in_log_space():
    """Heinsen's form, log h_t = G_t + logcumsumexp(log x - G), valid because the candidates are positive."""
    x = inputs_of(rules.min_lstm)

    def log_candidate(c):
        return torch.where(c >= 0, (c.relu() + 0.5).log(), F.logsigmoid(c))

    def log_space(g, log_x):
        total = g.cumsum(1)
        return (total + torch.logcumsumexp(log_x - total, 1)).exp()

    want = log_space(-F.softplus(x["f"]), F.logsigmoid(x["f"]) + log_candidate(x["x"]))
    assert relative_error(rules.min_gru(x["x"], x["f"]).o, want) < 1e-12
    delta = F.softplus(-x["f"]) - F.softplus(-x["i"])
    want = log_space(-F.softplus(delta), -F.softplus(-delta) + log_candidate(x["x"]))
    assert relative_error(rules.min_lstm(**x).o, want) < 1e-12


def test_extreme_gates_of_min_lstm():
    """Both gates closed: their ratio still decides."""
    x = torch.ones(1, 3, 1, dtype=torch.float64)
    out = rules.min_lstm(x, torch.full_like(x, -800), torch.full_like(x, -800), state=torch.zeros(1, 1))
    assert torch.allclose(out.o.flatten(), 1.5 * torch.tensor([0.5, 0.75, 0.875], dtype=torch.float64))


@pytest.mark.parametrize("form", FORMS)
def test_rg_lru_has_a_bounded_derivative_where_nothing_decays(form):
    x = inputs_of(rules.rg_lru)
    x["g"] = -1e-9 * (torch.rand_like(x["g"]) < 0.5).double()
    x = {n: t.requires_grad_() for n, t in x.items()}
    out = rules.rg_lru.form(form)(**x)
    grads = torch.autograd.grad(out.o.sum(), list(x.values()))
    assert all(torch.isfinite(g).all() for g in grads)
    weight = (-torch.expm1(2 * x["g"])).sqrt()
    assert relative_error(out.o[:, 0], (weight * x["i"] * x["x"])[:, 0]) < 1e-13
    token = torch.ones(1, 1, 1, dtype=torch.float64)
    g = torch.full_like(token, -1e-12).requires_grad_()
    (slope,) = torch.autograd.grad(rules.rg_lru(token, g, token).o.sum(), g)
    assert torch.allclose(slope, torch.full_like(slope, -2000.0))


def test_one_input_s5_is_s4d():
    x = inputs_of(rules.s4d, D=1)
    one = torch.ones(8, 1, dtype=torch.float64)
    want = rules.s4d(**x)
    got = rules.s5(
        x["x"],
        x["dt"].expand(8),
        x["A_re"][0],
        x["A_im"][0],
        one,
        torch.zeros_like(one),
        x["C_re"],
        x["C_im"],
        x["D"],
    )
    assert relative_error(got.o, want.o) < 1e-12
    assert relative_error(got.state, want.state[:, 0]) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_lru_is_a_rotation_with_decay(form):
    """A complex eigenvalue is a decay and a 2 x 2 rotation of (real, imaginary)."""
    x = inputs_of(rules.lru, N=1, D=1, B=1)
    state = torch.zeros(2, dtype=torch.float64)
    c, s = x["angle"].cos()[0], x["angle"].sin()[0]
    turn = x["g"].exp() * torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    into = (1 - (2 * x["g"]).exp()).sqrt() * torch.cat([x["B_re"][0], x["B_im"][0]])
    rows = []
    for u in x["x"].flatten():
        state = turn @ state + into * u
        rows.append(x["C_re"][0, 0] * state[0] - x["C_im"][0, 0] * state[1] + x["D"][0] * u)
    assert relative_error(rules.lru.form(form)(**x).o.flatten(), torch.stack(rows)) < 1e-12


def test_bilinear_is_the_trapezoidal_rule():
    x = inputs_of(rules.s4d, B=1, D=1, N=1, T=6)
    A = torch.complex(x["A_re"], x["A_im"])[0, 0]
    dt, C = x["dt"][0], torch.complex(x["C_re"], x["C_im"])[0, 0]
    h, rows = torch.zeros((), dtype=torch.complex128), []
    for u in x["x"].flatten():
        h = (h + dt * (A * h / 2 + u)) / (1 - dt * A / 2)  # h' - h = dt (A (h + h') / 2 + u)
        rows.append(2 * (C * h).real + x["D"][0] * u)
    for form in FORMS:
        got = rules.s4d.form(form)(**x, discretization="bilinear").o
        assert relative_error(got.flatten(), torch.stack(rows)) < 1e-12
    with pytest.raises(UnknownNameError, match="unknown discretization 'euler'; one of zoh, bilinear"):
        rules.s4d(**x, discretization="euler")


def test_complex_expm1_keeps_its_digits():
    z = torch.tensor([1e-12 + 1e-12j, -1e-9 + 1e-3j, -2 + 3j], dtype=torch.complex128)
    want = z + z**2 / 2 + z**3 / 6 + z**4 / 24
    assert torch.allclose(expm1(z)[:2], want[:2], rtol=1e-13, atol=0)
    assert torch.allclose(expm1(z)[2], z[2].exp() - 1, rtol=1e-14)


def test_longhorn_with_one_key_channel_is_the_exact_delta_rule():
    x = inputs_of(rules.longhorn, N=1)
    beta = x["beta"][..., :1]
    got = rules.longhorn(x["q"], x["k"], x["v"], beta.expand_as(x["v"]))
    eps = beta / (1 + beta * x["k"].square())
    want = rules.delta_net(x["q"][:, :, None], x["k"][:, :, None], x["v"][:, :, None], eps, scale=1.0)
    assert relative_error(got.o, want.o[:, :, 0]) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_rwkv4_is_its_double_sum(form):
    x = inputs_of(rules.rwkv4, T=12, B=1, D=2)
    out = rules.rwkv4.form(form)(**x).o
    for d in range(2):
        want = true_rwkv4(
            x["k"][0, :, d].tolist(), x["v"][0, :, d].tolist(), float(x["w"][d]), float(x["u"][d])
        )
        assert relative_error(out[0, :, d], torch.tensor(want, dtype=torch.float64)) < 1e-13


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shift", [800.0, -800.0, 5e4])
def test_rwkv4_does_not_see_a_shift_of_all_keys(form, shift):
    """e^800 overflows double precision; averages do not depend on it."""
    x = inputs_of(rules.rwkv4)
    want = rules.rwkv4(**x)
    x["k"] = (x["k"] + shift).requires_grad_()
    got = rules.rwkv4.form(form)(**x)
    assert relative_error(got.o, want.o) < 1e-9
    assert relative_error(got.state.m, want.state.m + shift) < 1e-9
    (grad,) = torch.autograd.grad(got.o.sum(), x["k"])
    assert torch.isfinite(grad).all()


def slstm_inputs(**sizes):
    return inputs_of(rules.slstm, T=20, **sizes)


def test_slstm_without_feedback_is_two_elementwise_scans():
    x = slstm_inputs()
    x |= {n: torch.zeros_like(x[n]) for n in ("Rz", "Ri", "Rf", "Ro")}
    got = rules.slstm(**x)
    g, weight = F.logsigmoid(x["f"]).flatten(2), x["i"].exp().flatten(2)
    ones = torch.ones_like(g)
    num = rules.qrnn(x["z"].tanh().flatten(2), g, ones, weight).o
    den = rules.qrnn(ones, g, ones, weight).o
    assert relative_error(got.o.flatten(2), x["o"].sigmoid().flatten(2) * num / den) < 1e-12


@pytest.mark.parametrize("shift", [-800.0, 800.0])
def test_slstm_does_not_see_a_shift_of_all_input_gates(shift):
    """Also a first gate of e^-800: the running maximum starts at minus infinity, not at zero."""
    x = slstm_inputs()
    want = rules.slstm(**x)
    got = rules.slstm(**{**x, "i": x["i"] + shift})
    assert relative_error(got.o, want.o) < 1e-9
    assert relative_error(got.state.h, want.state.h) < 1e-9


def test_slstm_says_why_it_is_sequential():
    x = slstm_inputs()
    for form in ("parallel", "chunkwise"):
        with pytest.raises(FormError, match=f"slstm has no {form} form: the gates read the previous output"):
            rules.slstm.form(form)(**x)
    assert rules.slstm.default_form(20) == "recurrent"
    assert torch.equal(rules.slstm(**x).o, rules.slstm.recurrent(**x).o)
    with pytest.raises(UnknownNameError, match="unknown forget_gate 'relu'; one of sigmoid, exp"):
        rules.slstm(**x, forget_gate="relu")


def test_slstm_step_is_not_affine_in_the_state():
    """The reason itself: the middle of two states does not lead to the middle of their successors."""
    x = slstm_inputs(B=1)
    token = {n: t[:, :1] if t.dim() == 4 else t for n, t in x.items()}
    first = rules.slstm(**x).state
    second = first._replace(h=-first.h)
    middle = first._replace(h=torch.zeros_like(first.h))
    ends = [rules.slstm.step(**token, state=s).o for s in (first, second)]
    assert relative_error(rules.slstm.step(**token, state=middle).o, (ends[0] + ends[1]) / 2) > 1e-3


def test_slstm_exponential_forget_gate():
    x = slstm_inputs()
    want = rules.slstm(**x)
    x |= {n: torch.zeros_like(x[n]) for n in ("Rz", "Ri", "Rf", "Ro")}
    a = rules.slstm(**x)
    b = rules.slstm(**{**x, "f": F.logsigmoid(x["f"])}, forget_gate="exp")
    assert relative_error(b.o, a.o) < 1e-13
    assert relative_error(a.o, want.o) > 1e-3


def test_exact_longhorn_is_the_delta_rule():
    """The minimiser of |S - S_0|^2 + beta |S^T k - v|^2 has a gradient of zero."""
    x = inputs_of(rules.delta_net, T=1, B=1, H=1, HV=1)
    x["k"] = 3 * x["k"]
    start = torch.randn(1, 1, 8, 6, dtype=torch.float64)
    k, v, beta = x["k"][0, 0, 0], x["v"][0, 0, 0], 5 * x["beta"][0, 0, 0]
    eps = beta / (1 + beta * k.square().sum())
    S = rules.delta_net(x["q"], x["k"], x["v"], eps.expand(1, 1, 1), state=start).state[0, 0]
    gradient = (S - start[0, 0]) + beta * torch.outer(k, S.T @ k - v)
    assert gradient.abs().max() < 1e-13
