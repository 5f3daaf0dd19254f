"""RWKV-7 as flash-linear-attention publishes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from linrec.errors import CheckpointError
from linrec.models.config import Config
from linrec.models.formats.fla import around, around_options, flattened, only_options, resolved
from linrec.models.formats.format import Format, layer_values, of_type
from linrec.models.formats.options import Options
from linrec.models.formats.weights import Weight, same

LAYER = "rwkv7"
FUSED, UNFUSED = 1e-6, 1e-24  # what its two ways to normalise a key add to the square of its length
RANKS = {  # ours: theirs, its default, and what makes one of the width where it is null
    "decay_rank": ("decay_low_rank_dim", 64, 2.5, True),
    "rate_rank": ("a_low_rank_dim", 64, 2.5, True),
    "value_rank": ("v_low_rank_dim", 16, 1.7, True),
    "gate_rank": ("gate_low_rank_dim", 128, 5.0, False),
}
SIGNALS = "rwkvag"  # the order in which the layer keeps their shares
BIASES = ("weight", "bias")


def _config(options: Options) -> Config:
    width = options.whole("hidden_size", 2048)
    head = options.take("head_dim", 64)
    head = width // options.whole("num_heads") if head is None else options.whole("head_dim", 64)
    options.without_effect("num_heads")
    for width_of_v in _listed(options.take("value_dim", None)):
        if width_of_v != width:
            raise CheckpointError(
                f"{options.where}: value_dim = {width_of_v} cannot be expressed, only hidden_size = {width}"
            )
    eps = options.take("norm_eps", 1e-5)
    fused = options.take("fuse_norm", True)
    sizes: dict[str, float] = {ours: _rank(options, ours, width, head) for ours in RANKS}
    sizes |= {"norm_eps": head * eps, "key_eps": FUSED if fused else UNFUSED}
    options.only("hidden_act", ("sqrelu",), "sqrelu")
    inner = options.take("intermediate_size", None)
    ratio = options.take("hidden_ratio", 4)
    if inner is None:
        inner = -(-int(width * (4 if ratio is None else ratio)) // 32) * 32
    return around(
        options,
        LAYER,
        sizes,
        width // head,
        inner,
        norm_eps=eps,
        norm="layer",
        norm_bias=options.take("norm_bias", True),
        embed_norm=options.take("norm_first", True),
        mlp="rwkv",
    )


def _listed(value: Any) -> Sequence[Any]:
    return () if value is None else value if isinstance(value, list) else (value,)


def _rank(options: Options, ours: str, width: int, head: int) -> int:
    theirs, default, times, by_head = RANKS[ours]
    if options.take(theirs, default) is not None:
        return options.whole(theirs, default)
    channels = times * width**0.5 * (head / 64 if by_head else 1)
    return max(32, round(channels / 32) * 32)


def _options(config: Config) -> dict[str, Any]:
    blocks = {"norm": "layer", "mlp": "rwkv", "embed_norm": config.embed_norm}
    values = only_options(config, LAYER, (*RANKS, "key_eps"), {"depth": 0}, **blocks)
    head = config.d_model // config.num_heads
    if (values["norm_eps"] or 1e-5 * head) != head * config.norm_eps:
        raise CheckpointError("rwkv7: norm_eps of the layer is said to be head_dim times that of the model")
    if values["key_eps"] not in (FUSED, UNFUSED) or values["value_rank"] is None:
        raise CheckpointError(
            f"rwkv7: key_eps = {values['key_eps']} and value_rank = {values['value_rank']} cannot be said in this "
            f"format, only {FUSED} or {UNFUSED} and a number"
        )
    ranks = {theirs: values[ours] or values["gate_rank"] for ours, (theirs, *_) in RANKS.items()}
    return {
        **around_options(config, "rwkv7"),
        **ranks,
        "hidden_act": "sqrelu",
        "head_dim": head,
        "num_heads": config.num_heads,
        "norm_eps": config.norm_eps,
        "norm_bias": config.norm_bias,
        "norm_first": config.embed_norm,
        "fuse_norm": values["key_eps"] == FUSED,
    }


def _weights(config: Config) -> list[Weight]:
    sizes = resolved(config, layer_values(config, LAYER))
    parts = BIASES if config.norm_bias else BIASES[:1]
    found = [same("model.embeddings.weight", "embed.weight")]
    found += [same(f"model.norm.{part}", f"norm.{part}") for part in parts]
    for n in range(config.num_layers or 0):
        theirs, ours = f"model.layers.{n}.", f"blocks.{n}."
        norms = {"attn_norm": "mixer_norm", "ffn_norm": "mlp_norm"}
        norms |= {"pre_norm": "pre_norm"} if n == 0 and config.embed_norm else {}
        found += [
            same(f"{theirs}{a}.{part}", f"{ours}{b}.{part}") for a, b in norms.items() for part in parts
        ]
        mixing = {"x_k": "mu", "key.weight": "up.weight", "value.weight": "down.weight"}
        found += [same(f"{theirs}ffn.{a}", f"{ours}mlp.{b}") for a, b in mixing.items()]
        found += _mixer(f"{theirs}attn.", f"{ours}mixer.", sizes, first=n == 0)
    return found if config.tie_embeddings else [*found, same("lm_head.weight", "head.weight")]


def _mixer(theirs: str, ours: str, sizes: Mapping[str, Any], first: bool) -> list[Weight]:
    names = {"k_k": "xi", "k_a": "k_a", "r_k": "rho"}
    names |= {f"{name}_proj.weight": f"{name}_proj.weight" for name in "rkvo"}
    names |= _low_rank("w", "w_proj.0", "w_proj.2", "w_bias") | _low_rank(
        "a", "a_proj.0", "a_proj.1", "a_bias"
    )
    names |= _low_rank("g", "g_down", "g_up", None)
    if not first:
        names |= _low_rank("v", "v_mix.0", "v_mix.1", "v_bias")
    norm = [flattened(f"{theirs}g_norm.{x}", f"{ours}norm.{x}", sizes["num_heads"]) for x in BIASES]
    shares = Weight(
        tuple(f"{theirs}x_{signal}" for signal in SIGNALS),
        (ours + "mu",),
        lambda x: [torch.cat([part.flatten(0, 1) for part in x])],
        lambda x: [part.reshape(1, 1, -1) for part in x[0].clone()],
    )
    return [*(same(theirs + a, ours + b) for a, b in names.items()), *norm, shares]


def _low_rank(signal: str, down: str, up: str, bias: str | None) -> dict[str, str]:
    found = {f"{signal}_lora.lora.0.weight": f"{down}.weight", f"{signal}_lora.lora.2.weight": f"{up}.weight"}
    return found if bias is None else {**found, f"{signal}_lora.lora.2.bias": bias}


FORMATS = (Format("rwkv7", "RWKV7ForCausalLM", of_type("rwkv7"), _config, _options, _weights),)
