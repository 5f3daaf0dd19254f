"""The mechanisms: one file, one equation. ``rules.gated_delta_net(q, k, v, g, beta)`` and so on."""

import difflib

from linrec.errors import UnknownNameError
from linrec.rule import RULES, Output, Rule, validation
from linrec.rules.abc import abc
from linrec.rules.alibi import alibi, alibi_decay
from linrec.rules.block_delta import block_delta
from linrec.rules.canon import canon
from linrec.rules.comba import comba
from linrec.rules.cope import cope
from linrec.rules.delta_former import delta_former
from linrec.rules.delta_net import delta_net
from linrec.rules.delta_product import delta_product
from linrec.rules.dfw import dfw
from linrec.rules.forgetting_attention import forgetting_attention
from linrec.rules.gated_delta_net import gated_delta_net
from linrec.rules.gated_delta_net_2 import gated_delta_net_2
from linrec.rules.gated_slot_attention import gated_slot_attention
from linrec.rules.gateloop import gateloop
from linrec.rules.generalized_delta import generalized_delta
from linrec.rules.gla import gla
from linrec.rules.hgrn import hgrn
from linrec.rules.hgrn2 import hgrn2
from linrec.rules.kimi_delta_attention import kimi_delta_attention
from linrec.rules.large_chunk_ttt import large_chunk_ttt
from linrec.rules.latent_attention import latent_attention
from linrec.rules.lightning import lightning, lightning_decay
from linrec.rules.linear_attention import linear_attention
from linrec.rules.log_linear_attention import log_linear_attention
from linrec.rules.log_linear_gated_delta import log_linear_gated_delta
from linrec.rules.longhorn import longhorn
from linrec.rules.longhorn_delta import longhorn_delta
from linrec.rules.lru import lru
from linrec.rules.mamba import mamba
from linrec.rules.mamba2 import mamba2
from linrec.rules.mamba3 import mamba3
from linrec.rules.mamba3_mimo import mamba3_mimo
from linrec.rules.mesa_net import mesa_net
from linrec.rules.min_gru import min_gru
from linrec.rules.min_lstm import min_lstm
from linrec.rules.mlstm import mlstm
from linrec.rules.momentum_delta import momentum_delta
from linrec.rules.omega import omega
from linrec.rules.path_attention import path_attention
from linrec.rules.qrnn import qrnn
from linrec.rules.retnet import retnet, retnet_decay
from linrec.rules.rg_lru import rg_lru
from linrec.rules.rwkv4 import rwkv4
from linrec.rules.rwkv5 import rwkv5
from linrec.rules.rwkv6 import rwkv6
from linrec.rules.rwkv7 import rwkv7
from linrec.rules.s4d import s4d
from linrec.rules.s5 import s5
from linrec.rules.shared_kv_attention import shared_kv_attention
from linrec.rules.slstm import slstm
from linrec.rules.softmax_attention import softmax_attention
from linrec.rules.sru import sru
from linrec.rules.stick_breaking import stick_breaking
from linrec.rules.tensor_product_attention import tensor_product_attention
from linrec.rules.titans import titans
from linrec.rules.token_shift import token_shift
from linrec.rules.ttt_linear import ttt_linear
from linrec.rules.ttt_mlp import ttt_mlp
from linrec.rules.weight_decay_delta import weight_decay_delta


def get_rule(name: str) -> Rule:
    """The rule of this name; UnknownNameError with the nearest names otherwise."""
    if name not in RULES:
        near = difflib.get_close_matches(name, RULES) or sorted(RULES)
        raise UnknownNameError(f"unknown rule {name!r}; did you mean {', '.join(near)}?")
    return RULES[name]


__all__ = [
    "RULES",
    "Output",
    "abc",
    "alibi",
    "alibi_decay",
    "block_delta",
    "canon",
    "comba",
    "cope",
    "delta_former",
    "delta_net",
    "delta_product",
    "dfw",
    "forgetting_attention",
    "gated_delta_net",
    "gated_delta_net_2",
    "gated_slot_attention",
    "gateloop",
    "generalized_delta",
    "get_rule",
    "gla",
    "hgrn",
    "hgrn2",
    "kimi_delta_attention",
    "large_chunk_ttt",
    "latent_attention",
    "lightning",
    "lightning_decay",
    "linear_attention",
    "log_linear_attention",
    "log_linear_gated_delta",
    "longhorn",
    "longhorn_delta",
    "lru",
    "mamba",
    "mamba2",
    "mamba3",
    "mamba3_mimo",
    "mesa_net",
    "min_gru",
    "min_lstm",
    "mlstm",
    "momentum_delta",
    "omega",
    "path_attention",
    "qrnn",
    "retnet",
    "retnet_decay",
    "rg_lru",
    "rwkv4",
    "rwkv5",
    "rwkv6",
    "rwkv7",
    "s4d",
    "s5",
    "shared_kv_attention",
    "slstm",
    "softmax_attention",
    "sru",
    "stick_breaking",
    "tensor_product_attention",
    "titans",
    "token_shift",
    "ttt_linear",
    "ttt_mlp",
    "validation",
    "weight_decay_delta",
]
