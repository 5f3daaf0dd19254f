"""Drop-in ``nn.Module`` layers around the rules: ``y, state = layer(x, state=None)``."""

from linrec.layers.additive import GLA, Lightning, LinearAttention, RetNet
from linrec.layers.base import Layer
from linrec.layers.convolution import Canon, TokenShift
from linrec.layers.delta import DeltaNet, GatedDeltaNet, KimiDeltaAttention
from linrec.layers.feedback import (
    Alibi,
    Cope,
    DeltaFormer,
    ForgettingAttention,
    PathAttention,
    StickBreaking,
)
from linrec.layers.mamba2 import Mamba2
from linrec.layers.shared import MultiHeadLatentAttention, SharedKVAttention, TensorProductAttention
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
        SoftmaxAttention,
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
    )
}

__all__ = [
    "GLA",
    "LAYERS",
    "Alibi",
    "Canon",
    "Cope",
    "DeltaFormer",
    "DeltaNet",
    "ForgettingAttention",
    "GatedDeltaNet",
    "KimiDeltaAttention",
    "Layer",
    "Lightning",
    "LinearAttention",
    "Mamba2",
    "MultiHeadLatentAttention",
    "PathAttention",
    "RetNet",
    "SharedKVAttention",
    "SoftmaxAttention",
    "StickBreaking",
    "TensorProductAttention",
    "TokenShift",
]
