"""The matrix engine beyond what any one rule uses: general path, undecayed prediction, "pre" readout, bonus."""

import itertools

import pytest
import torch

from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.engines.matrix.chunk import one_chunk
from linrec.engines.matrix.scores import decayed_scores
from linrec.engines.matrix.terms import to_heads
from linrec.engines.numerics.triangular import solve_unit_lower
from linrec.rule import Call, donation
from linrec.testing import relative_error

FORMS = ("parallel", "chunkwise", "recurrent")
F64 = torch.float64


def draw(length=37, batch=1, heads=2, value_heads=4, width=5, value_width=3, channel=False, seed=0):
    gen = torch.Generator().manual_seed(seed)

    def n(*shape):
        return torch.randn(*shape, generator=gen, dtype=F64)

    gate = (batch, length, value_heads, width) if channel else (batch, length, value_heads)
    return {
        "q": n(batch, length, heads, width),
        "k": n(batch, length, heads, width) / 2,
        "v": n(batch, length, value_heads, value_width),
        "g": -n(*gate).abs(),
        "a": n(batch, length, value_heads, width) / 2,
        "b": n(batch, length, heads, width) / 2,
        "bonus": n(value_heads, width),
    }


def loop(x, state, predict, readout, scale):
    """The definition on single heads."""
    group = x["v"].shape[2] // x["k"].shape[2]
    batch, length, value_heads, value_width = x["v"].shape
    o = torch.zeros(batch, length, value_heads, value_width, dtype=F64)
    last = state.clone()
    for i, h in itertools.product(range(batch), range(value_heads)):
        S, kv = state[i, h], h // group
        for t in range(length):
            q, k, v = scale * x["q"][i, t, kv], x["k"][i, t, kv], x["v"][i, t, h]
            g = x["g"][i, t, h] if x.get("g") is not None else torch.zeros((), dtype=F64)
            decayed = torch.exp(g)[..., None] * S if g.dim() else torch.exp(g) * S
            new = decayed + torch.outer(k, v)
            if x.get("a") is not None:
                b = k if x.get("b") is None else x["b"][i, t, kv]
                seen = decayed if predict == "decayed" else S
                new = new + torch.outer(b, seen.T @ x["a"][i, t, h])
            if readout == "pre":
                bonus = 0 if x.get("bonus") is None else (q * x["bonus"][h] * k).sum()
                o[i, t, h] = S.T @ q + bonus * v
            else:
                o[i, t, h] = new.T @ q
            S = new
        last[i, h] = S
    return o, last


def run(x, state, form, predict="undecayed", readout="post", bounds=None, chunk=16):
    terms = MatrixTerms(**x, predict=predict, readout=readout)
    return MATRIX.run(terms, state, Call(form, 0.6, bounds, chunk, "auto"), "test")


PATHS = {"additive": ("a", "b"), "delta": ("b",), "general": ()}


@pytest.mark.parametrize("channel", [False, True], ids=["scalar", "channel"])
@pytest.mark.parametrize("readout", ["post", "pre"])
@pytest.mark.parametrize("predict", ["decayed", "undecayed"])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_equals_the_loop(path, predict, readout, channel):
    x = {n: t for n, t in draw(channel=channel).items() if n not in PATHS[path]}
    if readout == "post":
        x.pop("bonus")
    state = torch.randn(1, 4, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    want = loop(x, state, predict, readout, 0.6)
    for form in FORMS:
        got = run(x, state, form, predict, readout)
        assert all(relative_error(a, b) < 1e-10 for a, b in zip(got, want, strict=True)), form
    bounds = [0, 0, 3, 20, 37]
    states = torch.randn(4, 4, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    packed = run(x, states, "chunkwise", predict, readout, bounds)
    for s, (i, j) in enumerate(itertools.pairwise(bounds)):
        part = {n: t[:, i:j] if n != "bonus" else t for n, t in x.items()}
        o, last = loop(part, states[s : s + 1], predict, readout, 0.6)
        assert relative_error(packed[0][:, i:j], o) < 1e-10
        assert relative_error(packed[1][s : s + 1], last) < 1e-10


@pytest.mark.parametrize("donated", [False, True])
@pytest.mark.parametrize("channel", [False, True], ids=["scalar", "channel"])
@pytest.mark.parametrize("readout", ["post", "pre"])
@pytest.mark.parametrize("predict", ["decayed", "undecayed"])
@pytest.mark.parametrize("path", [*PATHS, "one strength", "two strengths"])
def test_tokens_where_only_values_count(path, predict, readout, channel, donated):
    """A state that is not given away stays as it is; one that is holds the next state."""
    x = {n: t for n, t in draw(5, 2, channel=channel).items() if n not in PATHS.get(path, ("a", "b"))}
    if readout == "post":
        x.pop("bonus")
    lowered = dict(x)
    if path.endswith(("strength", "strengths")):
        write, erase = torch.rand(2, 2, 5, 4, dtype=F64, generator=torch.Generator().manual_seed(3))
        erase = write if path == "one strength" else erase
        lowered |= {"write": write, "erase": erase}
        x |= {"v": write[..., None] * x["v"], "a": -erase[..., None] * x["k"].repeat_interleave(2, dim=2)}
    state = torch.randn(2, 4, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    want, last = loop(x, state, predict, readout, 0.6)
    with torch.no_grad(), donation(donated):
        for t in range(5):
            token = {n: v if n == "bonus" else v[:, t : t + 1] for n, v in lowered.items()}
            if path == "one strength":
                token["erase"] = token["write"]
            before, given = state.clone(), state
            o, state = run(token, given, "step", predict, readout)
            assert relative_error(o, want[:, t : t + 1]) < 1e-10
            assert (state.data_ptr() == given.data_ptr()) == donated
            assert donated or torch.equal(given, before)
    assert relative_error(state, last) < 1e-10


@pytest.mark.parametrize("readout", ["post", "pre"])
@pytest.mark.parametrize("path", PATHS)
def test_gradients_of_every_path(path, readout):
    x = {
        n: t for n, t in draw(length=9, value_heads=2, heads=1, channel=True).items() if n not in PATHS[path]
    }
    if readout == "post":
        x.pop("bonus")
    names = list(x)

    def call(*values):
        return run(dict(zip(names, values, strict=True)), None, "chunkwise", "undecayed", readout, chunk=4)

    assert torch.autograd.gradcheck(call, tuple(t.requires_grad_() for t in x.values()))


def test_no_gate_and_grouped_a_and_b():
    """g absent means no decay; a may live on key heads."""
    x = {n: t for n, t in draw().items() if n in ("q", "k", "v")}
    x["a"] = draw(seed=3)["b"]
    spread = {**x, "a": x["a"].repeat_interleave(2, dim=2), "g": torch.zeros(1, 37, 4, dtype=F64)}
    for form in FORMS:
        got = run(x, None, form)
        want = loop(spread, torch.zeros(1, 4, 5, 3, dtype=F64), "undecayed", "post", 0.6)
        assert all(relative_error(a, b) < 1e-10 for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_channel_scores_by_sub_chunks_equal_the_definition(length):
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, length, 4, dtype=F64, generator=gen).unbind(0)
    g = -torch.rand(3, length, 4, dtype=F64, generator=gen) * 60
    total = g.cumsum(-2)
    exponent = total[:, :, None] - total[:, None]
    keep = torch.ones(length, length, dtype=torch.bool).tril()[..., None]
    want = (x[:, :, None] * y[:, None] * exponent.masked_fill(~keep, -torch.inf).exp()).sum(-1)
    assert relative_error(decayed_scores(x, y, total, total, diagonal=True), want) < 1e-14


def test_forward_substitution_survives_what_doubling_does_not():
    """Equal keys: powers of the system reach 5e17, the inverse is bounded by one."""
    keys = torch.nn.functional.normalize(
        torch.ones(64, 64, dtype=F64) + 0.3 * torch.eye(64, dtype=F64), dim=-1
    )
    system = -(keys @ keys.T).tril(-1)
    exact = torch.linalg.inv(torch.eye(64, dtype=F64) - system)
    got = solve_unit_lower(system.float(), torch.eye(64))
    assert exact.abs().max() < 1.01
    assert relative_error(got, exact) < 1e-6
    doubled, power = torch.eye(64) + system.float(), system.float()
    for _ in range(5):
        power = power @ power
        doubled = doubled + doubled @ power
    assert relative_error(doubled, exact) > 1.0


def test_chunk_maps_compose():
    """A chunk is an affine map of its entry state: S -> P S + N; two chunks compose as (P2 P1, P2 N1 + N2)."""
    x = {n: t for n, t in draw(length=24, heads=2, value_heads=2).items() if n != "bonus"}
    heads = to_heads(MatrixTerms(**x), 1.0)

    def chunk(i, j, entry):
        return one_chunk(heads.rows(i, j), entry, "undecayed", "post")[1]

    def affine(i, j):
        """(P, N): N is the exit state of an empty one, P the response to unit states of width K."""
        unit = torch.eye(5, dtype=F64).expand(1, 2, 1, 5, 5)
        wide = heads._replace(v=torch.zeros(1, 2, 1, 24, 5, dtype=F64))
        linear = one_chunk(wide.rows(i, j), unit, "undecayed", "post")[1]
        return linear, chunk(i, j, torch.zeros(1, 2, 1, 5, 3, dtype=F64))

    (p1, n1), (p2, n2), (p, n) = affine(0, 10), affine(10, 24), affine(0, 24)
    assert relative_error(p2 @ p1, p) < 1e-12
    assert relative_error(p2 @ n1 + n2, n) < 1e-12


@pytest.mark.parametrize("moving", ["q", "state"])
def test_forward_mode_by_dual_numbers(moving):
    """Not only torch.func.jvp: dual numbers reach the path that has forward derivatives, whichever input moves."""
    x = {n: t for n, t in draw().items() if n not in ("bonus", "a", "b")}
    state = torch.randn(1, 4, 5, 3, dtype=F64)
    both = {**x, "state": state}
    tangent = torch.cos(both[moving])

    def call(values):
        rest = dict(values)
        return run(rest, rest.pop("state"), "chunkwise")[0]

    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(both[moving], tangent)
        got = torch.autograd.forward_ad.unpack_dual(call({**both, moving: dual})).tangent
    want = torch.autograd.functional.jvp(lambda z: call({**both, moving: z}), both[moving], tangent)[1]
    assert got is not None
    assert relative_error(got, want) < 1e-12


def test_training_keeps_only_the_states_between_chunks():
    """What the graph holds beyond the arguments: one state a chunk, nothing of the length of the sequence."""
    x = {
        n: t.requires_grad_()
        for n, t in draw(length=64, width=8, value_width=8).items()
        if n in ("q", "k", "v", "g")
    }
    held = {}

    def pack(t):
        held[t.data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        o, _ = run(x, None, "chunkwise", chunk=16)
    o.sum().backward()
    arguments = sum(t.numel() for t in x.values())
    states = 5 * 4 * 8 * 8
    assert sum(held.values()) <= arguments + states + 4 * 8 * 8


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("value_heads", [2, 4])
def test_states_of_any_layout(channel, value_heads):
    """A state that is a view with strides of its own, and an expanded gradient of the last state."""
    x = draw(batch=2, value_heads=value_heads, channel=channel)
    terms = MatrixTerms(**{name: x[name] for name in ("q", "k", "v", "g")}, erase=x["v"][..., 0].sigmoid())
    wide = torch.randn(3, value_heads, 5, 2, dtype=F64).permute(3, 1, 2, 0)[:2]

    def results(state):
        state = state.detach().requires_grad_()
        o, last = MATRIX.run(terms, state, Call("chunkwise", 0.6, None, 16, "auto"), "test")
        return o, last, *torch.autograd.grad(o.sum() + last.sum(), state)

    for found, want in zip(results(wide), results(wide.contiguous()), strict=True):
        assert relative_error(found, want) < 1e-12
