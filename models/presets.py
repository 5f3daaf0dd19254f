"""Ready configurations by name; ``preset(name, field=value)`` changes fields of one."""

from __future__ import annotations

import dataclasses
from typing import Any

from linrec.models.config import Config, check_name

_BYTES: dict[str, Any] = {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
_DEMO: dict[str, Any] = {"d_model": 128, "num_layers": 4, "num_heads": 4, **_BYTES}
_HYBRID = ("gated_delta_net", "gated_delta_net", "softmax_attention", "gated_delta_net")

# The 340M-class setting in which these mechanisms are usually compared: 24 layers of width 1024.
_MEDIUM: dict[str, Any] = {"vocab_size": 32000, "d_model": 1024, "num_layers": 24, "num_heads": 8}

PRESETS: dict[str, dict[str, Any]] = {
    "demo-hybrid": {**_DEMO, "pattern": _HYBRID},
    "demo-softmax": {**_DEMO, "pattern": ("softmax_attention",)},
    "demo-recurrent": {**_DEMO, "pattern": ("gated_delta_net",)},
    "medium-gated-delta-net": {**_MEDIUM, "pattern": ("gated_delta_net",)},
    "medium-kimi-delta-attention": {**_MEDIUM, "pattern": ("kimi_delta_attention",)},
    "medium-mamba2": {
        **_MEDIUM,
        "num_layers": 48,
        "num_heads": 32,
        "mlp_ratio": None,
        "pattern": ("mamba2",),
    },
    "medium-hybrid": {**_MEDIUM, "pattern": (*("gated_delta_net",) * 3, "softmax_attention")},
    "medium-softmax": {**_MEDIUM, "pattern": ("softmax_attention",)},
}


def preset(name: str, **changes: Any) -> Config:
    """The configuration ``name`` with some fields changed; ConfigError for unknown names and fields."""
    check_name(name, PRESETS, "preset")
    for key in changes:
        check_name(key, [f.name for f in dataclasses.fields(Config)], "config: field")
    return Config(**{**PRESETS[name], **changes})
