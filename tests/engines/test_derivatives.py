"""Adjoints that are differentiated again, and what torch's forward mode does not carry far enough."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from linrec import rules
from linrec.engines.attention.fused import sdpa
from linrec.engines.numerics import forward_mode
from linrec.engines.numerics.derivatives import adjoint
from linrec.rules import RULES
from linrec.testing import example_inputs, relative_error
from tests.differentiation import (
    MODES,
    along_them,
    difference_of_gradients,
    directions,
    gradient,
    joined,
    reverse_over_reverse,
)


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_the_arguments_of_an_adjoint_are_variables_of_their_own() -> None:
    """f(a, b, c) = a b^2 c at b = a and c = 3 a: partial derivatives first, and then with all that depends on a."""
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    c = 3 * a
    one = torch.ones_like(a)
    found = adjoint(lambda a, b, c: (a * b**2 * c,), (a, a, c), (one,))
    assert [x.item() for x in found if x is not None] == [24.0, 48.0, 8.0]
    (second,) = torch.autograd.grad([x for x in found if x is not None], a, [one] * 3)
    # b^2 c = 3 a^3, 2 a b c = 6 a^3, a b^2 = a^3
    assert second.item() == 10 * 3 * 2.0**2


def test_an_adjoint_of_what_depends_on_nothing_is_zero() -> None:
    x, y = (t.requires_grad_() for t in drawn((3,), (2,)))
    (of_x, of_none, of_y) = adjoint(
        lambda x, n, y: (x * x, y.detach()), (x, None, y), (torch.ones(3), torch.ones(2))
    )
    assert of_x is not None and of_y is not None and of_none is None
    assert torch.equal(of_x, 2 * x) and not of_y.any()
    assert not any(g.any() for g in adjoint(lambda x: (x.detach(),), (x,), (torch.ones(3),)) if g is not None)


MATRIX = torch.eye(4, dtype=torch.float64) * 5
WRITTEN_OUT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu": (forward_mode.silu, F.silu),
    "glu": (forward_mode.glu, F.glu),
    "softmax": (forward_mode.softmax, lambda x: x.softmax(-1)),
    "logcumsumexp": (forward_mode.logcumsumexp, lambda x: x.logcumsumexp(1)),
    "layer_norm": (lambda x: forward_mode.layer_norm(x, 1e-5), lambda x: F.layer_norm(x, (4,), eps=1e-5)),
    "solve": (lambda x: forward_mode.solve(MATRIX + x, x), lambda x: torch.linalg.solve(MATRIX + x, x)),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_forward_mode_carries_far_enough(name: str) -> None:
    written_out, known = WRITTEN_OUT[name]
    (x,) = drawn((2, 5, 4)) if name != "solve" else drawn((2, 4, 4))
    with torch.autograd.forward_ad.dual_level():
        assert relative_error(written_out(x), known(x)) < 1e-14
        assert name == "solve" or written_out(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(written_out(x), known(x))
    weights = torch.linspace(-1, 2, known(x).numel(), dtype=x.dtype).view_as(known(x))
    along = directions([x])

    def loss(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return (f(x) * weights).sum()

    first = joined(gradient(lambda x: loss(known, x), [x]))
    second = joined(difference_of_gradients(lambda x: loss(known, x), [x], along))
    for mode, differentiate in MODES.items():
        got, again = differentiate(lambda x: loss(written_out, x), [x], along)
        want = (first * joined(along)).sum() if isinstance(got, Tensor) else first
        assert relative_error(got if isinstance(got, Tensor) else joined(got), want) < 1e-12, mode
        assert relative_error(joined(again), second) < 1e-8, mode


@pytest.mark.parametrize("kind", ["causal", "all", "window", "bias", "grouped"])
def test_attention_by_fused_kernels_is_differentiated_again(kind: str) -> None:
    q, k, v = drawn(
        (2, 5, 4, 3), (2, 5, 2 if kind == "grouped" else 4, 3), (2, 5, 2 if kind == "grouped" else 4, 3)
    )
    ahead = torch.arange(5)[:, None] - torch.arange(5)
    masks = {
        "window": ((ahead >= 0) & (ahead < 2))[None, None],
        "bias": torch.where(ahead >= 0, -0.3 * ahead.abs().double(), -torch.inf)[None, None],
    }

    def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Row by row, over the keys that it sees."""
        k, v = (x.repeat_interleave(4 // x.shape[2], dim=2) for x in (k, v))
        rows = []
        for i in range(5):
            seen = [j for j in range(5) if kind == "all" or (i - j >= 0 and (kind != "window" or i - j < 2))]
            bias = torch.tensor([-0.3 * (i - j) if kind == "bias" else 0.0 for j in seen], dtype=q.dtype)
            scores = torch.einsum("bhk,bjhk->bhj", q[:, i], k[:, seen]) * 0.7 + bias
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            rows.append(torch.einsum("bhj,bjhv->bhv", weights, v[:, seen]))
        return _weighed(torch.stack(rows, dim=1))

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        causal = kind in ("causal", "grouped")
        return _weighed(sdpa(q, k, v, mask=masks.get(kind), causal=causal, scale=0.7))

    values, along = [q, k, v], directions([q, k, v])
    first = joined(gradient(definition, values))
    second = joined(difference_of_gradients(definition, values, along))
    for mode, differentiate in MODES.items():
        got, again = differentiate(ours, values, along)
        if not isinstance(got, Tensor):
            assert relative_error(joined(got), first) < 1e-12, mode
        assert relative_error(joined(again), second) < 1e-8, mode


def _weighed(o: Tensor) -> Tensor:
    return (o * torch.linspace(-1, 2, o.numel(), dtype=o.dtype).view_as(o)).sum()


def test_low_precision_attention_is_differentiated_again() -> None:
    q, k, v = leaves = [
        x.bfloat16().requires_grad_() for x in drawn((1, 5, 2, 4), (1, 5, 2, 4), (1, 5, 2, 4))
    ]
    o = rules.softmax_attention(q, k, v).o
    grads = torch.autograd.grad(o.float().square().sum(), leaves, create_graph=True)
    again = torch.autograd.grad(torch.stack([g.float().square().sum() for g in grads]).sum(), leaves)
    q, k, v = exact = [x.detach().double().requires_grad_() for x in leaves]
    o = rules.softmax_attention(q, k, v).o
    grads = torch.autograd.grad(o.square().sum(), exact, create_graph=True)
    want = torch.autograd.grad(torch.stack([g.square().sum() for g in grads]).sum(), exact)
    assert all(x.dtype == torch.bfloat16 for x in again)
    assert (
        relative_error(joined([x.double() for x in again]), joined(want))
        < 16 * torch.finfo(torch.bfloat16).eps
    )


@pytest.mark.parametrize("name", ["gated_delta_net", "kimi_delta_attention", "mesa_net"])
def test_an_adjoint_within_autocast_computes_as_outside(name: str) -> None:
    """As forward does; a product in bfloat16 would be wrong in the third digit."""
    rule = RULES[name]
    leaves = [x.requires_grad_() for x in example_inputs(rule, T=9, B=1, dtype=torch.float32).values()]
    o = rule(*leaves, chunk_size=4).o
    want = joined(torch.autograd.grad(o, leaves, o.detach(), retain_graph=True))
    with torch.autocast("cpu", torch.bfloat16):
        for graph in (True, False):
            got = torch.autograd.grad(o, leaves, o.detach(), create_graph=graph, retain_graph=True)
            assert relative_error(joined(got), want) < 1e-5


@pytest.mark.parametrize(
    "name", ["delta_net", "gla", "rwkv7", "mamba2", "mamba", "mesa_net", "softmax_attention"]
)
def test_no_tokens_have_derivatives_too(name: str) -> None:
    rule = RULES[name]
    values = list(example_inputs(rule, T=0).values())
    state = rule.init_state(*values)

    def loss(*values: Tensor) -> Tensor:
        result = rule.chunkwise(*values, state=state)
        return result.o.sum() + sum((x * 0).sum() for x in values)

    first, second = reverse_over_reverse(loss, values, directions(values))
    assert not joined(first).any() and not joined(second).any()


def test_the_skip_of_mamba2_has_a_tangent_of_its_own() -> None:
    inputs = example_inputs(rules.mamba2, T=5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs["D"], torch.ones_like(inputs["D"]))
        o = rules.mamba2(**{**inputs, "D": dual}).o
        tangent = torch.autograd.forward_ad.unpack_dual(o).tangent
    assert relative_error(tangent, inputs["x"]) < 1e-14


@pytest.mark.parametrize("name", ["layer_norm", "ttt_linear", "delta_net", "mesa_net", "softmax_attention"])
def test_third_derivatives(name: str) -> None:
    """Against differences of the second ones; torch's layer norm is wrong by as much as they are large."""
    if name == "layer_norm":
        values, options = drawn((3, 5)), {}
    else:
        sizes = {"T": 4, "B": 1, "H": 1, "HV": 2, "HQ": 2, "K": 3, "V": 3, "M": 3}
        values, options = list(example_inputs(RULES[name], **sizes).values()), {"chunk_size": 3}  # type: ignore[arg-type]
    along = directions(values)

    def loss(*values: Tensor) -> Tensor:
        normed = name == "layer_norm"
        return _weighed(
            forward_mode.layer_norm(values[0], 1e-5) if normed else RULES[name](*values, **options).o
        )

    def slope(*values: Tensor) -> Tensor:
        grads = torch.autograd.grad(loss(*values), values, create_graph=True)
        return along_them(grads, along)

    want = difference_of_gradients(slope, values, along)
    _, got = reverse_over_reverse(slope, values, along)
    assert relative_error(joined(got), joined(want)) < 1e-6
