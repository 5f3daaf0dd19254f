"""Drop-in ``nn.Module`` layers around the rules: ``y, state = layer(x, state=None)``."""

from linrec.layers.additive import GLA, Lightning, LinearAttention, RetNet
from linrec.layers.base import Layer
from linrec.layers.delta import DeltaNet, GatedDeltaNet, KimiDeltaAttention
from linrec.layers.mamba2 import Mamba2
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
    )
}

__all__ = [
    "GLA",
    "LAYERS",
    "DeltaNet",
    "GatedDeltaNet",
    "KimiDeltaAttention",
    "Layer",
    "Lightning",
    "LinearAttention",
    "Mamba2",
    "RetNet",
    "SoftmaxAttention",
]
