"""Rules against the plain references that ship with fla-core, where it is installed.

The references are loaded file by file: importing the package itself would need Triton and change transformers.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from linrec import rules
from linrec.testing import example_inputs, relative_error

SPEC = importlib.util.find_spec("fla")
pytestmark = pytest.mark.skipif(SPEC is None, reason="fla-core is not installed")
FORMS = ("parallel", "chunkwise", "recurrent")


def naive(folder, name):
    assert SPEC is not None and SPEC.submodule_search_locations
    path = Path(SPEC.submodule_search_locations[0]) / "ops" / folder / "naive.py"
    loader = importlib.util.spec_from_file_location(f"fla_naive_{folder.replace('/', '_')}", path)
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return getattr(module, name)


def heads_first(*tensors):
    return [t.transpose(1, 2) for t in tensors]


def gated_delta(f, q, k, v, g, beta):
    return f(q, k, v, beta, g, output_final_state=True)


def delta(f, q, k, v, beta):
    o, state = f(*heads_first(q, k, v), beta.transpose(1, 2), output_final_state=True)
    return o.transpose(1, 2), state


def slots(f, q, k, v, g):
    return f(q, k, v, -torch.expm1(g), g)[0]


def bounded(f, q, k, v, z):
    return f(*heads_first(q, k, v, z))[0].transpose(1, 2)


def product(f, q, k, v, g, beta):
    micro = [t.transpose(2, 3).flatten(1, 2) for t in (k, v, beta[..., None])]
    scale, steps = q.shape[-1] ** -0.5, k.shape[3]
    return f(q, micro[0], micro[1], g, micro[2][..., 0], scale, None, None, True, steps)[0]


def momentum(f, q, k, v, g, h, eta, beta, p):
    return f(q, k, v, g, h, p, beta, eta)[0]


CASES: dict[str, tuple[str, str, Any]] = {
    "gated_delta_net": ("gated_delta_rule", "naive_recurrent_gated_delta_rule", gated_delta),
    "delta_net": ("delta_rule", "delta_rule_recurrence", delta),
    "kimi_delta_attention": (
        "kda",
        "naive_recurrent_kda",
        lambda f, q, k, v, g, beta: f(q, k, v, g, beta, output_final_state=True),
    ),
    "gated_delta_net_2": (
        "gdn2",
        "naive_recurrent_gdn2",
        lambda f, q, k, v, g, erase, write: f(q, k, v, g, erase, write, output_final_state=True),
    ),
    "gla": ("gla", "naive_recurrent_gla", lambda f, q, k, v, g: f(q, k, v, g, output_final_state=True)),
    "gated_slot_attention": ("gsa", "naive_recurrent_gsa", slots),
    "abc": ("abc", "naive_recurrent_abc", bounded),
    "delta_product": ("gated_delta_product", "naive_recurrent_gated_delta_product", product),
    "momentum_delta": ("momentum_delta_rule", "recurrent_momentum_delta_rule_ref", momentum),
    "mesa_net": (
        "mesa_net",
        "naive_mesa_net_exact",
        lambda f, q, k, v, g, beta, lam: f(q, k, v, g, lam, beta)[0],
    ),
    "log_linear_attention": (
        "log_linear_attn",
        "naive_log_linear_attn",
        lambda f, q, k, v, g, lam: f(q, k, v, g, lam, scale=None),
    ),
    "forgetting_attention": (
        "forgetting_attn",
        "naive_forgetting_attn",
        lambda f, q, k, v, g: f(q, k, v, g),
    ),
    "stick_breaking": ("stickbreaking_attn", "naive_stickbreaking_attn", lambda f, q, k, v: f(q, k, v)[0]),
    "delta_former": ("deltaformer", "naive_deltaformer_attn", lambda f, q, k, v, beta, w: f(q, k, v, beta)),
}
LENGTHS = {"log_linear_attention": 32}  # the reference counts levels for powers of two


@pytest.mark.parametrize("name", CASES)
def test_against_fla(name):
    folder, function, call = CASES[name]
    rule = rules.get_rule(name)
    sizes: dict[str, Any] = {"H": 2, "HV": 2, "T": LENGTHS.get(name, 37)}
    if name in ("mesa_net", "delta_former"):
        sizes |= {"K": 8, "V": 8, "HQ": 2}
    x = {n: t.float() for n, t in example_inputs(rule, **sizes).items()}
    if "p" in rule.arguments:
        x.setdefault("p", x["k"])
    if "w" in rule.arguments:
        x["w"] = x["q"]  # the reference corrects values by queries, the article by keys
    found = call(naive(folder, function), **x)
    o, state = found if isinstance(found, tuple) else (found, None)
    for form in FORMS:
        if form in rule.reasons:
            continue
        ours = rule.form(form)(**x)
        assert relative_error(ours.o, o) < 3e-5, form
        if state is not None:
            assert relative_error(ours.state, state) < 3e-5, form
