"""Small random models of transformers' families, whose mixers count: weights as large as their inputs ask for."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

VOCABULARY = 97
HYBRID = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
MATRIX = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
LATENT = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
# All experts are chosen: else rounding could choose another one, and nothing could be compared.
EXPERTS = {
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 2,
    "num_experts_per_tok": 2,
}
FEW = {"num_experts": 2, "num_experts_per_tok": 2}
LOCAL_EXPERTS = {"moe_intermediate_size": 16, "num_local_experts": 2, "num_experts_per_tok": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SSD = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
SHARED = ["mamba", "hybrid", "mamba", "hybrid"]
CONVOLUTIONS = ["conv", "conv", "full_attention", "conv"]

# Family: file of transformers, name of the configuration, class of the model, and what makes it small.
FAMILIES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "qwen3_next": (
        "qwen3_next", "Qwen3NextConfig", "Qwen3NextForCausalLM",
        {**ATTENTION, **MATRIX, **EXPERTS, "layer_types": HYBRID},
    ),
    "qwen3_5": (
        "qwen3_5", "Qwen3_5TextConfig", "Qwen3_5ForCausalLM", {**ATTENTION, **MATRIX, "layer_types": HYBRID}
    ),
    "qwen3_5_moe": (
        "qwen3_5_moe", "Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM",
        {**ATTENTION, **MATRIX, **EXPERTS, "layer_types": HYBRID},
    ),
    "qwen4_exp": (
        "qwen4_exp", "Qwen4ExpTextConfig", "Qwen4ExpForCausalLM",
        {
            **ATTENTION, **MATRIX, **EXPERTS, "layer_types": HYBRID, "hc_count": 2, "hc_lowrank": 8,
            "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 512,
            "indexer_compress_ratio": 4, "ngram_vocab_size_base": 64, "ple_layer_ids": [2], "ple_embed_dim": 32,
            "split_ngram_parts": 8,
        },
    ),
    "lara_mini": (
        "lara_mini", "LaraMiniConfig", "LaraMiniForCausalLM",
        {**ATTENTION, **MATRIX, **EXPERTS, "layer_types": HYBRID},
    ),
    "olmo_hybrid": (
        "olmo_hybrid", "OlmoHybridConfig", "OlmoHybridForCausalLM",
        {"num_attention_heads": 4, **MATRIX, "linear_num_key_heads": 4, "layer_types": HYBRID, },
    ),
    "kimi_linear": (
        "kimi_linear", "KimiLinearConfig", "KimiLinearForCausalLM",
        {**LATENT, **LOCAL_EXPERTS, "linear_head_dim": 8, "linear_num_heads": 4, "layer_types": HYBRID},
    ),
    "bailing_hybrid": (
        "bailing_hybrid", "BailingHybridConfig", "BailingHybridForCausalLM",
        {**LATENT, **LOCAL_EXPERTS, "n_group": 1, "topk_group": 1, "head_dim": 8, "layer_types": HYBRID},
    ),
    "glm5_next": (
        "glm5_next", "Glm5NextConfig", "Glm5NextForConditionalGeneration",
        {
            **LATENT, "moe_intermediate_size": 16, "n_routed_experts": 2, "num_experts_per_tok": 2,
            "linear_head_dim": 8, "linear_num_heads": 4, "layer_types": HYBRID, "q_lora_rank": 16,
            "qk_rope_head_dim": 0, "hc_mult": 2, "index_topk": 512, "index_head_dim": 16, "index_n_heads": 2,
            "index_kpool": 4,
        },
    ),
    "recurrent_gemma": (
        "recurrent_gemma", "RecurrentGemmaConfig", "RecurrentGemmaForCausalLM",
        {"num_attention_heads": 4, "num_key_value_heads": 1, "attention_window_size": 256},
    ),
    "rwkv": ("rwkv", "RwkvConfig", "RwkvForCausalLM", {"rescale_every": 0}),
    "minimax": (
        "minimax", "MiniMaxConfig", "MiniMaxForCausalLM",
        {
            **ATTENTION, "num_local_experts": 2, "num_experts_per_tok": 2, "block_size": 32, "layer_types": HYBRID,
        },
    ),
    "xlstm": ("xlstm", "xLSTMConfig", "xLSTMForCausalLM", {"hidden_size": 128, "num_heads": 2, "chunk_size": 32}),
    "mamba": ("mamba", "MambaConfig", "MambaForCausalLM", {"state_size": 8}),
    "falcon_mamba": ("falcon_mamba", "FalconMambaConfig", "FalconMambaForCausalLM", {"state_size": 8}),
    "jamba": (
        "jamba", "JambaConfig", "JambaForCausalLM",
        {**HEADS, **FEW, "mamba_d_state": 8, "attn_layer_period": 4, "attn_layer_offset": 2},
    ),
    "zamba": (
        "zamba", "ZambaConfig", "ZambaForCausalLM",
        {"num_attention_heads": 4, "num_key_value_heads": 4, "mamba_d_state": 8, "layers_block_type": SHARED},
    ),
    "mamba2": (
        "mamba2", "Mamba2Config", "Mamba2ForCausalLM",
        {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2, "chunk_size": 16},
    ),
    "zamba2": (
        "zamba2", "Zamba2Config", "Zamba2ForCausalLM",
        {
            "num_attention_heads": 4, "num_key_value_heads": 4, "n_mamba_heads": 4, "mamba_ngroups": 2,
            "mamba_d_state": 8, "chunk_size": 16, "layers_block_type": SHARED,
        },
    ),
    "bamba": ("bamba", "BambaConfig", "BambaForCausalLM", {**HEADS, **SSD, "attn_layer_indices": [2]}),
    "nemotron_h": (
        "nemotron_h", "NemotronHConfig", "NemotronHForCausalLM",
        {
            **ATTENTION, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 2,
            "chunk_size": 16, "layers_block_type": ["mamba", "mlp", "attention", "mamba"],
        },
    ),
    "falcon_h1": ("falcon_h1", "FalconH1Config", "FalconH1ForCausalLM", {**ATTENTION, **SSD, "mamba_d_ssm": 64}),
    "falcon_h1_normed": (
        "falcon_h1", "FalconH1Config", "FalconH1ForCausalLM",
        {**ATTENTION, **SSD, "mamba_d_ssm": 64, "mamba_rms_norm": True},
    ),
    "granitemoehybrid": (
        "granitemoehybrid", "GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM",
        {
            **HEADS, **SSD, "num_local_experts": 2, "num_experts_per_tok": 2, "shared_intermediate_size": 24,
            "layer_types": HYBRID,
        },
    ),
    "lfm2": (
        "lfm2", "Lfm2Config", "Lfm2ForCausalLM",
        {**HEADS, "block_auto_adjust_ff_dim": False, "layer_types": CONVOLUTIONS},
    ),
    "lfm2_moe": (
        "lfm2_moe", "Lfm2MoeConfig", "Lfm2MoeForCausalLM",
        {**HEADS, **FEW, "moe_intermediate_size": 16, "num_dense_layers": 2, "layer_types": CONVOLUTIONS},
    ),
    "lfm3": ("lfm3", "Lfm3Config", "Lfm3ForCausalLM", {**ATTENTION, "layer_types": CONVOLUTIONS}),
}  # fmt: skip


def small_model(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A model of this family, in evaluation mode."""
    file, configuration, model, sizes = FAMILIES[family]
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = getattr(
        importlib.import_module(f"transformers.models.{file}.configuration_{file}"), configuration
    )
    kind = getattr(importlib.import_module(f"transformers.models.{file}.modeling_{file}"), model)
    torch.manual_seed(seed)
    made = kind(small_config(config, {**common, **sizes, **changes})).eval()
    spread(made)
    return made


def small_config(kind: Any, sizes: dict[str, Any]) -> Any:
    """Of a model that also sees pictures, the sizes are those of its text."""
    if "text_config" not in kind.sub_configs:
        return kind(**sizes)
    pictures = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    return kind(text_config=sizes, vision_config={**pictures, "projection_intermediate_size": 16})


def spread(model: nn.Module) -> None:
    """Weights with outputs of the size of their inputs; other parameters away from where they are initialised."""
    with torch.no_grad():
        for name, x in model.named_parameters():
            if min(x.shape) > 1 or ("conv" in name and x.dim() > 1):
                fan_in = x.shape[-1] if x.dim() < 3 or min(x.shape) > 1 else x[0].numel()
                x.normal_(0, (1 if "embed" in name else fan_in) ** -0.5)
            else:
                x.add_(torch.randn_like(x) / 10)
