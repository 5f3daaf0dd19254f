"""RWKV-5 and -6 and HGRN2: what they become, and decays that forget at once."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from linrec import rules
from linrec.testing import relative_error
from tests.rules.identities import FORMS, close, inputs_of, same
from tests.rules.loops import LOOPS


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


@pytest.mark.parametrize("strongest", [-1.0, -4.6, -7.0, -800.0])
def test_rwkv5_with_channels_that_forget_at_once(strongest):
    """Constant decays too strong for any frame beside one that hardly decays: forward and gradients."""
    x = inputs_of(rules.rwkv5)
    x["g"] = torch.linspace(-1e-3, strongest, x["g"].numel(), dtype=torch.float64).view_as(x["g"])
    leaves = [t.requires_grad_() for t in x.values()]
    want = LOOPS["rwkv5"](*leaves)[0]
    for length in (None, 10, 40):
        got = rules.rwkv5(*leaves, chunk_size=length).o
        close(got, want, 1e-11)
        pairs = zip(*(torch.autograd.grad(o.square().sum(), leaves) for o in (got, want)), strict=True)
        want = LOOPS["rwkv5"](*leaves)[0]
        assert all(relative_error(a, b) < 1e-10 for a, b in pairs)
