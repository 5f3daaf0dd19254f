"""Drop-in ``nn.Module`` layers around the rules: ``y, state = layer(x, state=None)``."""

from linrec.layers.additive import GLA, Lightning, LinearAttention, RetNet
from linrec.layers.base import Layer
from linrec.layers.composite import HGRN2, MLSTM, GatedSlotAttention, MesaNet
from linrec.layers.delta import DeltaNet, GatedDeltaNet, KimiDeltaAttention
from linrec.layers.delta_variants import Comba, DeltaProduct, LogLinearAttention, LogLinearGatedDelta
from linrec.layers.mamba2 import Mamba2
from linrec.layers.mamba3 import Mamba3
from linrec.layers.rwkv import RWKV6, RWKV7
from linrec.layers.softmax import SoftmaxAttention

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
        RWKV6,
        RWKV7,
        SoftmaxAttention,
    )
}

__all__ = [
    "GLA",
    "HGRN2",
    "LAYERS",
    "MLSTM",
    "RWKV6",
    "RWKV7",
    "Comba",
    "DeltaNet",
    "DeltaProduct",
    "GatedDeltaNet",
    "GatedSlotAttention",
    "KimiDeltaAttention",
    "Layer",
    "Lightning",
    "LinearAttention",
    "LogLinearAttention",
    "LogLinearGatedDelta",
    "Mamba2",
    "Mamba3",
    "MesaNet",
    "RetNet",
    "SoftmaxAttention",
]
