"""Families of transformers in sizes that a CPU can time: four layers of width 1024, small vocabularies.

What the mixers and the rest of a layer cost is in proportion as in published models.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

COMMON = {"hidden_size": 1024, "num_hidden_layers": 4, "vocab_size": 4096}
COMMON |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = 8  # quick: sizes of 64 and more are divided by it
HYBRID = {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2}
MATRIX = {"linear_num_key_heads": 16, "linear_num_value_heads": 16}
MATRIX |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {"num_attention_heads": 8, "num_key_value_heads": 8, "kv_lora_rank": 256}
LATENT |= {"qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "v_head_dim": 128}
SSD = {"mamba_n_heads": 32, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 128}
# Behind a first layer without keys MiniMax in transformers takes every cache for an empty one.
ATTENTION_FIRST = {"layer_types": ["full_attention"] + ["linear_attention"] * 3}
ATTENTION_LAST = {"layer_types": ["mamba"] * 3 + ["attention"]}

# Family: what the names of its classes begin with, and its sizes.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": (
        "Qwen3Next",
        {**HEADS, **MATRIX, **EXPERTS, **HYBRID, "head_dim": 128, "moe_intermediate_size": 512},
    ),
    "qwen3_5": ("Qwen3_5", {**HEADS, **MATRIX, **HYBRID, "head_dim": 256, "intermediate_size": 3584}),
    "olmo_hybrid": (
        "OlmoHybrid",
        {**HYBRID, "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 2816},
    ),
    "kimi_linear": (
        "KimiLinear",
        {
            **LATENT, **LOCAL, **HYBRID, "linear_head_dim": 128, "linear_num_heads": 8,
            "intermediate_size": 2816, "moe_intermediate_size": 512,
        },
    ),
    "bailing_hybrid": (
        "BailingHybrid",
        {
            **LATENT, **LOCAL, **HYBRID, "head_dim": 128, "n_group": 1, "topk_group": 1,
            "intermediate_size": 2816, "moe_intermediate_size": 512,
        },
    ),
    "mamba": ("Mamba", {}),
    "falcon_mamba": ("FalconMamba", {}),
    "jamba": (
        "Jamba",
        {**HEADS, **EXPERTS, "attn_layer_period": 4, "attn_layer_offset": 3, "intermediate_size": 2816},
    ),
    "zamba": (
        "Zamba",
        {
            "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 2816,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        },
    ),
    "mamba2": ("Mamba2", {"num_heads": 32, "head_dim": 64, "state_size": 128, "n_groups": 1}),
    "zamba2": (
        "Zamba2",
        {
            "num_attention_heads": 8, "num_key_value_heads": 8, "n_mamba_heads": 32, "intermediate_size": 2816,
            "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"],
        },
    ),
    "bamba": ("Bamba", {**HEADS, **SSD, "attn_layer_indices": [3], "intermediate_size": 2816}),
    "nemotron_h": (
        "NemotronH",
        {
            **HEADS, "head_dim": 128, "mamba_num_heads": 32, "mamba_head_dim": 64, "ssm_state_size": 128,
            "intermediate_size": 2816, "layers_block_type": ["mamba", "mlp", "mamba", "attention"],
        },
    ),
    "falcon_h1": ("FalconH1", {**HEADS, **SSD, "mamba_d_ssm": 2048, "intermediate_size": 2048}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **HEADS, **SSD, **LOCAL, **ATTENTION_LAST, "intermediate_size": 512,
            "shared_intermediate_size": 1024,
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemma", {"num_attention_heads": 8, "num_key_value_heads": 1, "intermediate_size": 6144},
    ),
    "rwkv": ("Rwkv", {}),
    "minimax": (
        "MiniMax",
        {**HEADS, **ATTENTION_FIRST, **LOCAL, "head_dim": 128, "intermediate_size": 1024},
    ),
    "xlstm": ("xLSTM", {"num_heads": 2}),
    "lfm2": ("Lfm2", {**HEADS, "layer_types": ["conv"] * 3 + ["full_attention"], "intermediate_size": 2816}),
}  # fmt: skip


def build(family: str, quick: bool) -> Any:
    """A model with random weights, in evaluation mode."""
    prefix, sizes = FAMILIES[family]
    sizes = {**COMMON, **sizes}
    if quick:
        sizes = {name: x // SMALL if isinstance(x, int) and x >= 64 else x for name, x in sizes.items()}
    names = [f"{prefix}TextConfig", f"{prefix}Config"]  # of a family that also sees pictures, the text's
    configurations = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    config = next(getattr(configurations, name) for name in names if hasattr(configurations, name))
    models = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(models, f"{prefix}ForCausalLM")(config(**sizes)).eval()
