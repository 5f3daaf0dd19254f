"""Every layer: streaming, packing, padding, gradients, precision."""

import itertools

import pytest
import torch

from linrec.errors import ConfigError, DtypeError, LinrecError, ShapeError
from linrec.layers import LAYERS
from linrec.layers.parts import ShortConvolution, rotate, unit_norm
from linrec.rules import RULES
from linrec.state import map_tensors, named_tensors, select_rows, state_bytes
from linrec.testing import relative_error

NAMES = sorted(LAYERS)
TIGHT = 1e-11


SMALL = {"large_chunk_ttt": {"mini_batch": 8}}  # where a default is made for sequences longer than these


def make(name, d_model=16, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return LAYERS[name](d_model, 2, **{**SMALL.get(name, {}), **options}).to(dtype)


def tokens(batch=2, length=21, d_model=16, dtype=torch.float64):
    return torch.randn(batch, length, d_model, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_every_layer_is_named_by_its_rule():
    assert set(LAYERS) <= set(RULES)
    assert all(LAYERS[name].rule.name == name for name in LAYERS)
    assert all(LAYERS[name].state_grows == RULES[name].grows for name in LAYERS)


@pytest.mark.parametrize("name", NAMES)
def test_pieces_and_steps_equal_one_pass(name):
    layer, x = make(name), tokens()
    whole, last = layer(x)
    for sizes in ([21], [1] * 21, [2, 0, 19], [20, 1]):
        state, parts = None, []
        for piece in x.split(sizes, dim=1):
            y, state = layer(piece, state)
            parts.append(y)
        assert relative_error(torch.cat(parts, 1), whole) < TIGHT
        for (_, a), (_, b) in zip(named_tensors(state), named_tensors(last), strict=True):
            assert relative_error(a, b) < TIGHT


@pytest.mark.parametrize("name", NAMES)
def test_causal(name):
    layer, x = make(name), tokens()
    changed = x.clone()
    changed[:, 12:] += 1
    a, b = layer(x)[0], layer(changed)[0]
    assert relative_error(b[:, :12], a[:, :12]) < TIGHT
    assert relative_error(b[:, 12:], a[:, 12:]) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_packed_equals_separate(name):
    layer, x = make(name), tokens(batch=1)
    bounds = [0, 2, 2, 15, 21]
    _, state = layer(tokens(batch=4, length=5))
    y, after = layer(x, state, cu_seqlens=torch.tensor(bounds))
    for s, (i, j) in enumerate(itertools.pairwise(bounds)):
        row = select_rows(state, torch.tensor([s]))
        alone, end = layer(x[:, i:j], row)
        if j > i:
            assert relative_error(y[:, i:j], alone) < TIGHT
        follow = tokens(batch=1, length=1)
        again = layer(follow, select_rows(after, torch.tensor([s])))[0]
        assert relative_error(again, layer(follow, end)[0]) < TIGHT


@pytest.mark.parametrize("name", NAMES)
def test_padding_on_either_side_changes_nothing(name):
    layer, x = make(name), tokens(batch=3)
    mask = torch.ones(3, 21, dtype=torch.long)
    mask[0, :6] = 0
    mask[1, 15:] = 0
    real = [slice(6, 21), slice(0, 15), slice(0, 21)]
    y, state = layer(x, attention_mask=mask)
    follow = tokens(batch=3, length=2)
    after = layer(follow, state)[0]
    for b, part in enumerate(real):
        alone, end = layer(x[b : b + 1, part])
        assert relative_error(y[b : b + 1, part], alone) < TIGHT
        assert relative_error(after[b : b + 1], layer(follow[b : b + 1], end)[0]) < TIGHT
    assert (y[mask == 0] == 0).all()
    garbage = torch.where(mask[..., None] == 0, 1e3, x)
    assert torch.equal(layer(garbage, attention_mask=mask)[0], y)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_call_gives_the_first_state(name):
    layer, x = make(name), tokens()
    y, state = layer(x[:, :0])
    assert y.shape == (2, 0, 16)
    assert all(t.shape[0] == 2 for _, t in named_tensors(state))
    assert relative_error(layer(x, state)[0], layer(x)[0]) < 1e-14


@pytest.mark.parametrize("name", NAMES)
def test_state_size_is_constant_or_says_that_it_grows(name):
    layer, x = make(name), tokens()
    short, long = (state_bytes(layer(x[:, :n])[1]) for n in (5, 20))
    assert (long > short) == layer.state_grows


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name):
    layer, x = make(name), tokens()
    y, _ = layer(x)
    y.square().sum().backward()
    for parameter_name, p in layer.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_and_autocast(name):
    layer, x = make(name, dtype=torch.float32), tokens(dtype=torch.float32)
    exact = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(x)[0]
    half, state = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    for y in (mixed, half):
        assert relative_error(y, exact) < 16 * torch.finfo(torch.bfloat16).eps
    half.sum().backward()
    memory = getattr(state, "memory", None)  # what grows keeps the dtype of the tokens
    assert all(t.dtype == torch.float32 for _, t in named_tensors(memory) if t.is_floating_point())


@pytest.mark.parametrize("name", NAMES)
def test_state_is_not_touched(name):
    layer, x = make(name), tokens()
    _, state = layer(x[:, :4])
    before = map_tensors(torch.Tensor.clone, state)
    layer(x[:, 4:5], state)
    layer(x[:, 4:], state)
    for (_, a), (_, b) in zip(named_tensors(state), named_tensors(before), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_bad_input(name):
    layer = make(name)
    with pytest.raises(ShapeError, match=r"x must be \[B, T, d_model=16\], got \[2, 3, 8\]"):
        layer(torch.zeros(2, 3, 8, dtype=torch.float64))
    with pytest.raises(DtypeError, match="x must be floating point"):
        layer(torch.zeros(2, 3, 16, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"attention_mask must be \[B, T\] = \[2, 3\]"):
        layer(torch.zeros(2, 3, 16, dtype=torch.float64), attention_mask=torch.ones(2, 4))


def test_options():
    wide = make("gated_delta_net", num_v_heads=4, expand_v=2, head_dim=4, conv_size=0, use_gate=False)
    y, state = wide(tokens())
    assert y.shape == (2, 21, 16) and state.memory.shape == (2, 4, 4, 8) and state.conv is None
    negative = make("delta_net", allow_neg_eigval=True)
    assert torch.allclose(negative.gates(tokens())["beta"], 2 * make("delta_net").gates(tokens())["beta"])
    grouped = make("softmax_attention", num_kv_heads=1, qk_norm=True, rope_base=None)
    assert grouped(tokens())[1].k.shape == (2, 21, 1, 8)
    assert make("mamba2", num_groups=2)(tokens())[1].memory.shape == (2, 2, 128, 16)
    with pytest.raises(ConfigError, match="num_v_heads=3 must be a multiple of num_heads=2"):
        make("delta_net", num_v_heads=3)
    with pytest.raises(TypeError, match="num_hedas"):
        make("delta_net", num_hedas=3)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *(("latent_attention", name, 0) for name in ("head_dim", "rope_dim", "value_dim", "latent_dim")),
        *(("shared_kv_attention", name, 0) for name in ("head_dim", "rope_dim", "num_kv_heads", "qo_rank")),
        *(("tensor_product_attention", name, 0) for name in ("head_dim", "q_rank", "kv_rank")),
        *((name, "memory_width", 0) for name in ("ttt_mlp", "titans", "large_chunk_ttt")),
        ("softmax_attention", "qo_rank", 0),
        ("gla", "head_dim", 0),
        ("stick_breaking", "window", 4),
        ("hgrn2", "lower_bound", 1.5),
        ("hgrn2", "lower_bound", -0.5),
        ("mesa_net", "ridge", -1.0),
        ("mamba2", "state_size", 0),
        ("mamba2", "state_size", -1),
        ("lightning", "layer", 1),
        ("lightning", "layers", 0),
    ],
)
def test_no_option_is_taken_for_another_value(name, option, value):
    """Zero is no way to say the default, and what a layer cannot be is refused when it is made."""
    with pytest.raises(LinrecError, match=option.removeprefix("qo_")):
        make(name, **{option: value})


def test_mamba3_of_rank_one_and_of_equal_ranks():
    """Two ranks with the same B and C, x halved between them and outputs averaged, are the single one."""
    single, double = make("mamba3", state_size=8), make("mamba3", state_size=8, mimo_rank=2)
    wide, b, c = double.state_dict(), *(slice(n * 8, (n + 1) * 8) for n in (8, 9))
    narrow = single.state_dict()
    rows = narrow["in_proj.weight"]
    wide["in_proj.weight"] = torch.cat([rows[:64], rows[b], rows[b], rows[c], rows[c], rows[80:]])
    for name in set(narrow) - {"in_proj.weight", "b_bias", "c_bias"}:
        wide[name] = narrow[name]
    wide["D"] = 2 * narrow["D"]  # the skip takes the halved x
    double.load_state_dict(wide)
    assert relative_error(double(tokens())[0], single(tokens())[0]) < TIGHT
    with pytest.raises(ConfigError, match="mimo_rank must be at least 1"):
        make("mamba3", mimo_rank=0)


@pytest.mark.parametrize("rank", [2, 3])
def test_mamba3_of_higher_rank_streams_packs_and_learns(rank):
    layer, x = make("mamba3", state_size=8, num_groups=2, mimo_rank=rank), tokens()
    whole, last = layer(x)
    head, state = layer(x[:, :8])
    tail, end = layer(x[:, 8:], state)
    assert relative_error(torch.cat([head, tail], 1), whole) < TIGHT
    assert relative_error(end.memory, last.memory) < TIGHT
    packed, _ = layer(x.flatten(0, 1)[None], cu_seqlens=torch.tensor([0, 21, 42]))
    assert relative_error(packed.unflatten(1, (2, 21))[0], whole) < TIGHT
    mask = torch.ones(2, 21).index_fill(1, torch.tensor([0, 1]), 0)
    assert relative_error(layer(x, attention_mask=mask)[0][:, 2:], layer(x[:, 2:])[0]) < TIGHT
    assert layer(x[:, :0])[0].shape == (2, 0, 16)
    whole.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())
    low = make("mamba3", state_size=8, mimo_rank=rank, dtype=torch.bfloat16)
    assert low(tokens(dtype=torch.bfloat16))[0].dtype == torch.bfloat16


def test_short_convolution_is_a_left_padded_convolution():
    torch.manual_seed(0)
    conv = ShortConvolution(3, 4, bias=True, activation=False).double()
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    y, state = conv(x)
    assert conv.bias is not None
    for t in range(9):
        taps = [conv.weight[:, i] * x[:, t - 3 + i] for i in range(4) if t - 3 + i >= 0]
        want = conv.bias + torch.stack(taps).sum(0)
        assert torch.allclose(y[:, t], want)
    assert torch.equal(state, x[:, -3:])
    with pytest.raises(ShapeError, match="state must be"):
        conv(x, state[:, :1])


def test_rotation_depends_on_the_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).unbind(0)

    def product(i, j):
        return (rotate(q, torch.tensor([[i]])) * rotate(k, torch.tensor([[j]]))).sum()

    assert torch.allclose(product(7, 3), product(1004, 1000))
    assert torch.allclose(rotate(q, torch.tensor([[5]])).norm(), q.norm())
    assert torch.allclose(unit_norm(1e3 * q).norm(), torch.ones((), dtype=torch.float64))
