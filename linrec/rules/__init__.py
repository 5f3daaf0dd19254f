"""The mechanisms: one file, one equation. ``rules.gated_delta_net(q, k, v, g, beta)`` and so on."""

from linrec.rule import RULES, Output, get_rule, validation
from linrec.rules.abc import abc
from linrec.rules.block_delta import block_delta
from linrec.rules.comba import comba
from linrec.rules.delta_net import delta_net
from linrec.rules.delta_product import delta_product
from linrec.rules.dfw import dfw
from linrec.rules.gated_delta_net import gated_delta_net
from linrec.rules.gated_delta_net_2 import gated_delta_net_2
from linrec.rules.gated_slot_attention import gated_slot_attention
from linrec.rules.gateloop import gateloop
from linrec.rules.generalized_delta import generalized_delta
from linrec.rules.gla import gla
from linrec.rules.hgrn2 import hgrn2
from linrec.rules.kimi_delta_attention import kimi_delta_attention
from linrec.rules.lightning import lightning, lightning_decay
from linrec.rules.linear_attention import linear_attention
from linrec.rules.log_linear_attention import log_linear_attention
from linrec.rules.log_linear_gated_delta import log_linear_gated_delta
from linrec.rules.longhorn_delta import longhorn_delta
from linrec.rules.mamba2 import mamba2
from linrec.rules.mamba3 import mamba3
from linrec.rules.mesa_net import mesa_net
from linrec.rules.mlstm import mlstm
from linrec.rules.momentum_delta import momentum_delta
from linrec.rules.omega import omega
from linrec.rules.retnet import retnet, retnet_decay
from linrec.rules.rwkv5 import rwkv5
from linrec.rules.rwkv6 import rwkv6
from linrec.rules.rwkv7 import rwkv7
from linrec.rules.softmax_attention import softmax_attention
from linrec.rules.weight_decay_delta import weight_decay_delta

__all__ = [
    "RULES",
    "Output",
    "abc",
    "block_delta",
    "comba",
    "delta_net",
    "delta_product",
    "dfw",
    "gated_delta_net",
    "gated_delta_net_2",
    "gated_slot_attention",
    "gateloop",
    "generalized_delta",
    "get_rule",
    "gla",
    "hgrn2",
    "kimi_delta_attention",
    "lightning",
    "lightning_decay",
    "linear_attention",
    "log_linear_attention",
    "log_linear_gated_delta",
    "longhorn_delta",
    "mamba2",
    "mamba3",
    "mesa_net",
    "mlstm",
    "momentum_delta",
    "omega",
    "retnet",
    "retnet_decay",
    "rwkv5",
    "rwkv6",
    "rwkv7",
    "softmax_attention",
    "validation",
    "weight_decay_delta",
]
