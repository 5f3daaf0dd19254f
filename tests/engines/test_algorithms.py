"""The algorithms of the matrix engine: which a call takes and why, and that each asked for by name is right."""

import importlib.util

import pytest
import torch

from linrec import rules
from linrec.engines.matrix import engine
from linrec.engines.matrix.algorithms import FORM_OF
from linrec.errors import BackendError, UnknownNameError
from linrec.rules import RULES
from linrec.testing import example_inputs, example_state, relative_error
from tests.rules.loops import LOOPS

MATRIX = [name for name, rule in RULES.items() if rule.engine.name == "matrix"]
SCALAR = {
    "comba",
    "delta_net",
    "gated_delta_net",
    "lightning",
    "linear_attention",
    "longhorn_delta",
    "mamba2",
}
SCALAR |= {"retnet", "weight_decay_delta"}


def values_and_gradients(call, inputs, state):
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    entry = state.clone().requires_grad_()
    o, last = call(**leaves, state=entry)
    weights = (torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).view(x.shape) for x in (o, last))
    loss = sum((x * w).sum() for x, w in zip((o, last), weights, strict=True))
    return o, last, *torch.autograd.grad(loss, [*leaves.values(), entry])


@pytest.mark.parametrize("name", MATRIX)
def test_what_is_asked_for_equals_the_loop_or_says_why_it_cannot_run(name):
    """Values and gradients: of one token for step, of several for the others."""
    rule = RULES[name]
    for algorithm in (a for a in FORM_OF if a != "triton"):
        inputs = example_inputs(rule, T=1 if algorithm == "step" else 20)
        if algorithm == "chunkwise_scalar" and name not in SCALAR:
            with pytest.raises(BackendError, match=f"{name}: backend='{algorithm}' cannot run: "):
                rule(**inputs, backend=algorithm)
            continue
        state = example_state(rule, inputs)
        assert rule.explain(None, **inputs, backend=algorithm) == (algorithm, "it was asked for")

        def call(algorithm=algorithm, **x):
            return rule(**x, chunk_size=8, backend=algorithm)

        want = values_and_gradients(LOOPS[name], inputs, state)
        for found, right in zip(values_and_gradients(call, inputs, state), want, strict=True):
            assert relative_error(found, right) < 1e-10, algorithm


@pytest.mark.parametrize("algorithm", FORM_OF)
def test_the_algorithm_that_is_explained_is_the_one_that_runs(algorithm, monkeypatch):
    if algorithm == "triton":
        pytest.skip("needs a GPU")
    ran = []
    for name, compute in engine.ALGORITHMS.items():

        def noted(terms, state, call, name=name, compute=compute):
            ran.append(name)
            return compute(terms, state, call)

        monkeypatch.setitem(engine.ALGORITHMS, name, noted)
    inputs = example_inputs(rules.gated_delta_net, T=1 if algorithm == "step" else 9)
    assert rules.gated_delta_net.explain(None, **inputs, backend=algorithm).algorithm == algorithm
    assert not ran, "explaining computes nothing"
    rules.gated_delta_net(**inputs, backend=algorithm)
    assert ran == [algorithm]


def chosen(name, form=None, change=None, length=9, **options):
    inputs = example_inputs(RULES[name], T=length)
    inputs = inputs if change is None else change(inputs)
    return RULES[name].explain(form, **inputs, **options)


def test_what_is_chosen_on_a_cpu():
    assert chosen("gated_delta_net").algorithm == "chunkwise_scalar"
    assert chosen("kimi_delta_attention").algorithm == chosen("rwkv7").algorithm == "chunkwise_channel"
    assert chosen("gated_delta_net", "parallel").algorithm == "parallel"
    assert chosen("gated_delta_net", "recurrent").algorithm == "recurrent"
    assert (
        chosen("gated_delta_net", length=1).algorithm == chosen("rwkv7", "step", length=1).algorithm == "step"
    )
    bounds = torch.tensor([0, 1])

    def one_row(inputs):
        return {name: x[:1] for name, x in inputs.items()}

    packed = chosen("gated_delta_net", "recurrent", one_row, length=1, cu_seqlens=bounds)
    assert packed.algorithm == "recurrent"


def test_a_strong_decay_that_is_the_same_at_all_tokens_is_formed_for_every_two_of_them():
    def steady(strength):
        def change(inputs):
            g = torch.full_like(inputs["g"][:, :1], -strength).expand_as(inputs["g"])
            return {**inputs, "g": g}

        return change

    assert chosen("gla", change=steady(4.0)).algorithm == "chunkwise_channel"
    general = chosen("gla", change=steady(5.0))
    assert general.algorithm == "chunkwise_general"
    assert "not chunkwise_channel: the decay, the same at all tokens, is too strong" in general.reason
    with pytest.raises(BackendError, match="too strong"):
        chosen("gla", change=steady(5.0), backend="chunkwise_channel")


def test_transforms_take_differentiable_calls():
    inputs = example_inputs(rules.gated_delta_net, T=9)
    found = []

    def note(q):
        rest = {**inputs, "q": q}
        found.append(rules.gated_delta_net.explain(None, **rest))
        with pytest.raises(BackendError, match=r"'chunkwise_scalar' cannot run: .* transform of torch.func"):
            rules.gated_delta_net(**rest, backend="chunkwise_scalar")
        return rules.gated_delta_net(**rest).o

    others = example_inputs(rules.gla, T=9)

    def steady(g):  # too strong, which cannot be looked at here
        found.append(rules.gla.explain(None, **{**others, "g": g.expand(-1, 9, -1, -1)}))
        return g

    torch.vmap(steady)(torch.full((1, 2, 1, 4, 8), -9.0, dtype=torch.float64))
    torch.func.jvp(note, (inputs["q"],), (inputs["q"],))
    torch.vmap(note)(inputs["q"][None])
    assert [choice.algorithm for choice in found] == ["chunkwise_plain"] * 3
    assert all("a transform of torch.func or forward mode is active" in choice.reason for choice in found)


def test_reasons_tell_what_was_passed_over():
    reason = chosen("rwkv7").reason
    assert "not triton: the inputs are on cpu, and its kernels need a GPU" in reason
    assert "not chunkwise_scalar: " in reason
    assert "triton" not in chosen("rwkv7", backend="torch").reason


def test_an_algorithm_of_another_form_is_refused():
    with pytest.raises(
        BackendError, match="it computes the parallel form, and the recurrent form was called"
    ):
        chosen("gla", "recurrent", backend="parallel")
    with pytest.raises(BackendError, match=r"it takes one token of each sequence, and there are T = 9"):
        chosen("gla", backend="step")
    with pytest.raises(BackendError, match="Triton kernels need a GPU"):
        chosen("gla", backend="triton")


def test_only_the_engine_that_has_an_algorithm_knows_its_name():
    for name in ("softmax_attention", "delta_product", "mamba"):
        with pytest.raises(UnknownNameError, match=r"unknown backend .*; one of auto, torch, triton$"):
            chosen(name, backend="chunkwise_scalar")
    with pytest.raises(
        UnknownNameError, match="one of auto, torch, triton, step, recurrent, parallel, chunkwise"
    ):
        chosen("gla", backend="fastest")


@pytest.mark.parametrize("name", [name for name in RULES if name not in MATRIX])
def test_every_rule_can_be_explained(name):
    rule = RULES[name]
    inputs = example_inputs(rule, T=6)
    choice = rule.explain(None, **inputs)
    assert choice.algorithm == ("program" if rule.engine.name == "program" else rule.default_form(6))
    assert choice.reason
    if name in ("delta_product", "mlstm"):
        assert "chunkwise_scalar (one decay a head" in choice.reason


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_triton_where_it_is_asked_for_on_tensors_without_data():
    inputs = {name: x.to("meta", torch.float32) for name, x in example_inputs(rules.gla, T=9).items()}
    assert rules.gla.explain(None, **inputs, backend="triton") == ("triton", "it was asked for")
    without = rules.gla.explain(None, **inputs)
    assert without.algorithm == "chunkwise_general"
    assert "tensors without data hold none" in without.reason


@pytest.mark.parametrize("sizes", [{"T": 0}, {"B": 0}], ids=str)
@pytest.mark.parametrize("algorithm", ["chunkwise_scalar", "chunkwise_general", "chunkwise_plain"])
def test_no_token_has_no_gradient(algorithm, sizes):
    """Not even for a parameter without a time axis, whose gradient is a sum over none."""
    inputs = {name: x.requires_grad_() for name, x in example_inputs(rules.mamba2, **sizes).items()}
    if algorithm == "chunkwise_general":
        inputs = {name: x.requires_grad_() for name, x in example_inputs(rules.rwkv6, **sizes).items()}
    rule = rules.rwkv6 if algorithm == "chunkwise_general" else rules.mamba2
    o, state = rule(**inputs, backend=algorithm)
    for dx in torch.autograd.grad(o.sum() + state.sum(), list(inputs.values()), materialize_grads=True):
        assert torch.equal(dx, torch.zeros_like(dx))
