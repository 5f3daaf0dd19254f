"""What decoding has to keep: cache and parameters of attention variants, counted on the layers themselves.

The setting is the one in which the variants were compared in public (Su 2025): width 2048, 12 layers, SwiGLU of
5456. The layers are built and run on torch's meta device, so that nothing is allocated. The published parameter
counts include embeddings and norms, which were not stated; one constant for all rows reproduces every one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from linrec.layers import LAYERS, Layer
from linrec.state import named_tensors

D_MODEL, NUM_LAYERS, MLP_WIDTH, SMALL_MLP_WIDTH = 2048, 12, 5456, 4096
# Rows of a matrix of width D_MODEL: any number from 159 626 to 159 664 reproduces the published column.
CONSTANT_ROWS = 159_645
HEADERS = (
    "variant",
    "cache / token / layer",
    "constant state",
    "attention parameters",
    "parameters (M)",
    "published (M)",
)


class Variant(NamedTuple):
    """One row's layer; ``published``: its cache floats and its model's parameters in millions, where known."""

    name: str
    layer: str
    heads: int
    options: dict[str, Any]
    published: tuple[int, int] | None
    mlp_width: int = MLP_WIDTH


class Row(NamedTuple):
    """Floats a token and layer that the cache grows by, floats a layer that it starts with, parameters."""

    name: str
    cache: int
    constant: int
    attention: int
    total: int
    published: tuple[int, int] | None


def _gqa(groups: int, width: int, **options: Any) -> dict[str, Any]:
    return {"num_kv_heads": groups, "head_dim": width, **options}


def _shared(variant: str, groups: int, shared: int, rope: int = 64, **options: Any) -> dict[str, Any]:
    sizes = {"num_kv_heads": groups, "head_dim": shared + rope, "rope_dim": rope}
    return {"variant": variant, **sizes, **options}


def _latent(width: int, value: int) -> dict[str, Any]:
    return {"head_dim": width, "rope_dim": 64, "value_dim": value, "latent_dim": 512}


_SOFTMAX, _SHARED, _LATENT = "softmax_attention", "shared_kv_attention", "latent_attention"
VARIANTS = (
    Variant("MHA-128", _SOFTMAX, 16, _gqa(16, 128), (4096, 931)),
    Variant("MLA", _LATENT, 16, _latent(128, 128), (576, 894)),
    Variant("MLA-256", _LATENT, 16, _latent(192, 256), (576, 989)),
    Variant("GQA2-128", _SOFTMAX, 16, _gqa(2, 128), (512, 842)),
    Variant("GQA2-128, 32 heads", _SOFTMAX, 32, _gqa(2, 128), (512, 943)),
    Variant("GQA2-192", _SOFTMAX, 16, _gqa(2, 192), (768, 899)),
    Variant("GQA1-256", _SOFTMAX, 16, _gqa(1, 256), (512, 943)),
    Variant("GQA1-256-PR", _SOFTMAX, 16, _gqa(1, 256, rope_dim=64), (512, 943)),
    Variant("GQA1-256, MLP 4096", _SOFTMAX, 16, _gqa(1, 256), (512, 843), SMALL_MLP_WIDTH),
    Variant("GQA1-256, Q and O of rank 680", _SOFTMAX, 16, _gqa(1, 256, qo_rank=680), (512, 842)),
    Variant("GQA2-(192+64)-S1", _SHARED, 16, _shared("S1", 2, 192), (640, 946)),
    Variant("GQA2-(192+64)-S2", _SHARED, 16, _shared("S2", 2, 192), (512, 943)),
    Variant("GQA2-(192+64)-S2, MLP 4096", _SHARED, 16, _shared("S2", 2, 192), (512, 843), SMALL_MLP_WIDTH),
    Variant(
        "GQA2-(192+64)-S2, Q and O of rank 680", _SHARED, 16, _shared("S2", 2, 192, qo_rank=680), (512, 842)
    ),
    Variant("GQA4-(64+64)-S2", _SHARED, 16, _shared("S2", 4, 64), (512, 842)),
    Variant("GQA4-(64+64)-S2, 32 heads", _SHARED, 32, _shared("S2", 4, 64), (512, 943)),
    Variant("GQA4-(128+64)-S2", _SHARED, 16, _shared("S2", 4, 128), (768, 899)),
    Variant("GQA1-(512+64)-S3", _SHARED, 16, _shared("S3", 1, 512), (576, 1171)),
    Variant("TPA, rank 2", "tensor_product_attention", 16, {"head_dim": 128}, None),
)
SKIPPED = {"canon", "token_shift"}  # they mix neighbours only and stand beside another layer


def rows() -> list[Row]:
    """The published variants, then every layer with a constant state, with 16 heads and its own defaults."""
    return [measure(v) for v in (*VARIANTS, *_constant_layers())]


def measure(variant: Variant) -> Row:
    """Build the layer, let it read one and two tokens, and count."""
    with torch.device("meta"):
        layer = LAYERS[variant.layer](D_MODEL, variant.heads, **variant.options)
    one, two = (_state_floats(layer, tokens) for tokens in (1, 2))
    attention = sum(p.numel() for name, p in layer.named_parameters() if "norm" not in name.split("."))
    model = NUM_LAYERS * (attention + 3 * D_MODEL * variant.mlp_width) + CONSTANT_ROWS * D_MODEL
    return Row(variant.name, two - one, 2 * one - two, attention, model, variant.published)


def _state_floats(layer: Layer, tokens: int) -> int:
    state = layer(torch.zeros(1, tokens, D_MODEL, device="meta"))[1]
    return sum(t.numel() for _, t in named_tensors(state) if t.is_floating_point())


def _constant_layers() -> Iterator[Variant]:
    for name, layer in sorted(LAYERS.items()):
        if not layer.state_grows and name not in SKIPPED:
            yield Variant(name, name, 16, {}, None)


def cells() -> Iterator[tuple[str, ...]]:
    """The rows as text, in the order of HEADERS."""
    for row in rows():
        published = "" if row.published is None else str(row.published[1])
        attention, total = f"{row.attention / 1e6:.2f}M", str(round(row.total / 1e6))
        yield row.name, str(row.cache), str(row.constant), attention, total, published


def cache_table() -> str:
    """The table in markdown."""
    lines = ["| " + " | ".join(HEADERS) + " |", "|" + " --- |" * len(HEADERS)]
    lines += ["| " + " | ".join(row) + " |" for row in cells()]
    return "\n".join(lines) + "\n"
