"""Drop-in ``nn.Module`` layers around the rules: ``y, state = layer(x, state=None)``."""

from linrec.layers.additive import GLA, Lightning, LinearAttention, RetNet
from linrec.layers.additive_variants import ABC, DFW, GateLoop
from linrec.layers.base import Layer
from linrec.layers.channels import HGRN, QRNN, SRU, MinGRU, MinLSTM
from linrec.layers.composite import HGRN2, MLSTM, GatedSlotAttention, MesaNet
from linrec.layers.convolution import Canon, TokenShift
from linrec.layers.delta import DeltaNet, GatedDeltaNet, KimiDeltaAttention
from linrec.layers.delta_memory import GatedDeltaNet2, MomentumDelta, Omega
from linrec.layers.delta_variants import Comba, DeltaProduct, LogLinearAttention, LogLinearGatedDelta
from linrec.layers.fast_weights import TTTMLP, LargeChunkTTT, Titans, TTTLinear
from linrec.layers.feedback import (
    Alibi,
    Cope,
    DeltaFormer,
    ForgettingAttention,
    PathAttention,
    StickBreaking,
)
from linrec.layers.griffin import RGLRU
from linrec.layers.mamba import Longhorn, Mamba
from linrec.layers.mamba2 import Mamba2
from linrec.layers.mamba3 import Mamba3
from linrec.layers.rwkv import RWKV5, RWKV6, RWKV7
from linrec.layers.rwkv4 import RWKV4
from linrec.layers.shared import MultiHeadLatentAttention, SharedKVAttention, TensorProductAttention
from linrec.layers.slstm import SLSTM
from linrec.layers.softmax import SoftmaxAttention
from linrec.layers.state_space import LRU, S4D, S5
from linrec.state import export_names

LAYERS: dict[str, type[Layer]] = {
    cls.rule.name: cls
    for cls in (
        LinearAttention,
        RetNet,
        Lightning,
        GLA,
        Mamba2,
        DeltaNet,
        GatedDeltaNet,
        KimiDeltaAttention,
        HGRN2,
        MLSTM,
        GatedSlotAttention,
        MesaNet,
        Comba,
        DeltaProduct,
        LogLinearAttention,
        LogLinearGatedDelta,
        Mamba3,
        ABC,
        DFW,
        GateLoop,
        GatedDeltaNet2,
        MomentumDelta,
        Omega,
        RWKV5,
        RWKV6,
        RWKV7,
        SoftmaxAttention,
        LargeChunkTTT,
        TTTLinear,
        TTTMLP,
        Titans,
        Alibi,
        Cope,
        DeltaFormer,
        ForgettingAttention,
        PathAttention,
        StickBreaking,
        MultiHeadLatentAttention,
        SharedKVAttention,
        TensorProductAttention,
        Canon,
        TokenShift,
        HGRN,
        QRNN,
        SRU,
        MinGRU,
        MinLSTM,
        RGLRU,
        Longhorn,
        Mamba,
        RWKV4,
        SLSTM,
        LRU,
        S4D,
        S5,
    )
}
export_names()

__all__ = [
    "ABC",
    "DFW",
    "GLA",
    "HGRN",
    "HGRN2",
    "LAYERS",
    "LRU",
    "MLSTM",
    "QRNN",
    "RGLRU",
    "RWKV4",
    "RWKV5",
    "RWKV6",
    "RWKV7",
    "S4D",
    "S5",
    "SLSTM",
    "SRU",
    "TTTMLP",
    "Alibi",
    "Canon",
    "Comba",
    "Cope",
    "DeltaFormer",
    "DeltaNet",
    "DeltaProduct",
    "ForgettingAttention",
    "GateLoop",
    "GatedDeltaNet",
    "GatedDeltaNet2",
    "GatedSlotAttention",
    "KimiDeltaAttention",
    "LargeChunkTTT",
    "Layer",
    "Lightning",
    "LinearAttention",
    "LogLinearAttention",
    "LogLinearGatedDelta",
    "Longhorn",
    "Mamba",
    "Mamba2",
    "Mamba3",
    "MesaNet",
    "MinGRU",
    "MinLSTM",
    "MomentumDelta",
    "MultiHeadLatentAttention",
    "Omega",
    "PathAttention",
    "RetNet",
    "SharedKVAttention",
    "SoftmaxAttention",
    "StickBreaking",
    "TTTLinear",
    "TensorProductAttention",
    "Titans",
    "TokenShift",
]
