"""Options of the attention layers: every variant streams, and sizes are checked."""

import pytest
import torch

from linrec.errors import ConfigError
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
    ],
)
def test_bad_options(name, options, text):
    with pytest.raises(ConfigError, match=text):
        LAYERS[name](16, 2, **options)
