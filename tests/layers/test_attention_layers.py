"""Options of the attention layers: every variant streams, and sizes are checked."""

import inspect
from typing import Any

import pytest
import torch

from linrec.errors import ConfigError, LinrecError
from linrec.layers import LAYERS
from linrec.testing import relative_error

VARIANTS = [
    ("softmax_attention", {"window": 5}),
    ("softmax_attention", {"rope_dim": 4, "num_kv_heads": 1, "qo_rank": 3}),
    ("shared_kv_attention", {"variant": "S1", "num_kv_heads": 1}),
    ("shared_kv_attention", {"variant": "S3", "qo_rank": 3}),
    ("tensor_product_attention", {"q_rank": None, "kv_rank": 1}),
    ("latent_attention", {"latent_norm": False, "value_dim": 3}),
    ("path_attention", {"use_forget_gate": True, "w_rank": None, "w_conv": 0, "num_kv_heads": 1}),
    ("titans", {"memory_depth": 1, "mini_batch": 5}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_pieces_equal_one_pass(name, options):
    torch.manual_seed(0)
    layer = LAYERS[name](16, 2, **options).double()
    x = torch.randn(2, 21, 16, dtype=torch.float64)
    whole, state, parts = layer(x)[0], None, []
    for piece in x.split([1, 9, 1, 0, 10], dim=1):
        y, state = layer(piece, state)
        parts.append(y)
    assert relative_error(torch.cat(parts, 1), whole) < 1e-12


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("shared_kv_attention", {"variant": "S4"}, "variant must be S1, S2 or S3"),
        ("softmax_attention", {"rope_dim": 3}, "even rope_dim"),
        ("softmax_attention", {"window": 0}, "window must be None or positive"),
        ("titans", {"memory_depth": 3}, "memory_depth must be 1 or 2"),
        ("softmax_attention", {"rope_base": None, "rope_dim": 4}, "rope_dim=4 rotates nothing"),
        ("softmax_attention", {"num_kv_heads": 0}, "num_kv_heads=0"),
        ("gla", {"num_v_heads": 0}, "num_v_heads=0"),
        ("delta_net", {"head_dim": 0}, "head_dim=0"),
        ("mamba2", {"head_dim": 8}, "num_heads=2 of head_dim=8"),
        ("mamba3", {"head_dim": 8}, "num_heads=2 of head_dim=8"),
    ],
)
def test_bad_options(name, options, text):
    with pytest.raises(ConfigError, match=text):
        LAYERS[name](16, 2, **options)


KINDS: dict[type, list[Any]] = {
    bool: [True, False],
    int: [1, 2, 3, 8],
    float: [0.3, 2.0],
    type(None): [2, 3, 4, 8],
}
# Options that matter elsewhere than in one short pass of a layer of its own: num_heads is every layer's, and changes
# nothing where channels form no heads (the docstrings say so); the others need depth, length, wider heads, or options
# beside them.
ELSEWHERE = {"chunk_size", "backend", "num_heads", "norm_eps", "layer", "layers", "num_kv_heads"}
ELSEWHERE |= {"depth", "num_layers"}
LATER = {
    ("shared_kv_attention", "rope_base"),
    ("mesa_net", "iterations"),
    ("abc", "clamp"),
    *(("hgrn2", o) for o in ("learned_bounds", "conv_activation")),
    *(("large_chunk_ttt", o) for o in ("base_lr", "muon")),
}


def options_of(cls):
    """Every option of a layer's constructors, with its default."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base is torch.nn.Module:
            break
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | found
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return {name: default for name, default in found.items() if name not in ELSEWHERE}


def outcome(cls, options):
    """The output of a layer with drawn weights, or None for options that it refuses."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 12, 32, generator=generator, dtype=torch.float64)
    try:
        layer = cls(32, 4, **options).double()
        with torch.no_grad():
            for p in layer.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
            return layer(x)[0]
    except (LinrecError, TypeError):
        return None


@pytest.mark.parametrize("name", LAYERS)
def test_every_option_changes_something_or_is_refused(name):
    cls = LAYERS[name]
    usual = outcome(cls, {})
    for option, default in options_of(cls).items():
        if (name, option) in LATER:
            continue
        found = [outcome(cls, {option: value}) for value in KINDS.get(type(default), []) if value != default]
        changed = [y is None or y.shape != usual.shape or not torch.equal(y, usual) for y in found]
        assert not found or any(changed), f"{name}: {option} does nothing"
