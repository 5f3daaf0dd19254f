"""Inputs that break what is only nearly right: equal keys, resets, strong decays."""

import pytest
import torch
import torch.nn.functional as F

from linrec import rules
from linrec.state import map_tensors, named_tensors
from linrec.testing import relative_error
from tests.rules.identities import FORMS, inputs_of
from tests.rules.loops import LOOPS

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
    x = inputs_of(rule, B=1)
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
