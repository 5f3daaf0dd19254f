"""The mechanisms: one file, one equation. ``rules.gated_delta_net(q, k, v, g, beta)`` and so on."""

from linrec.rule import RULES, Output, get_rule, validation
from linrec.rules.alibi import alibi, alibi_decay
from linrec.rules.canon import canon
from linrec.rules.cope import cope
from linrec.rules.delta_former import delta_former
from linrec.rules.delta_net import delta_net
from linrec.rules.forgetting_attention import forgetting_attention
from linrec.rules.gated_delta_net import gated_delta_net
from linrec.rules.gla import gla
from linrec.rules.hgrn import hgrn
from linrec.rules.kimi_delta_attention import kimi_delta_attention
from linrec.rules.large_chunk_ttt import large_chunk_ttt
from linrec.rules.latent_attention import latent_attention
from linrec.rules.lightning import lightning, lightning_decay
from linrec.rules.linear_attention import linear_attention
from linrec.rules.longhorn import longhorn
from linrec.rules.lru import lru
from linrec.rules.mamba import mamba
from linrec.rules.mamba2 import mamba2
from linrec.rules.min_gru import min_gru
from linrec.rules.min_lstm import min_lstm
from linrec.rules.path_attention import path_attention
from linrec.rules.qrnn import qrnn
from linrec.rules.retnet import retnet, retnet_decay
from linrec.rules.rg_lru import rg_lru
from linrec.rules.rwkv4 import rwkv4
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

__all__ = [
    "RULES",
    "Output",
    "alibi",
    "alibi_decay",
    "canon",
    "cope",
    "delta_former",
    "delta_net",
    "forgetting_attention",
    "gated_delta_net",
    "get_rule",
    "gla",
    "hgrn",
    "kimi_delta_attention",
    "large_chunk_ttt",
    "latent_attention",
    "lightning",
    "lightning_decay",
    "linear_attention",
    "longhorn",
    "lru",
    "mamba",
    "mamba2",
    "min_gru",
    "min_lstm",
    "path_attention",
    "qrnn",
    "retnet",
    "retnet_decay",
    "rg_lru",
    "rwkv4",
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
]
