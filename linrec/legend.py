"""The legend of dimensions, and the kinds of argument that rules share, each with its shape in the legend's letters.

Legend (nothing else in the kit redefines these):

====  =========================================================================================
B     batch; with ``cu_seqlens`` a batch of one that holds S segments
T     time
H     heads of q and k (for softmax attention: of k and v)
HV    heads of v, a multiple of H: value head h reads q/k head ``h // (HV // H)``
HQ    heads of q in softmax attention, a multiple of H, interleaved the same way
K, V  key width, value width;  P, N: Mamba's names for V and K;  G: Mamba's name for H
D     channels of the elementwise rules;  N there: states a channel
C     chunk length
====  =========================================================================================

Layout is time first: q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, scalar gates ``[B, T, HV]``, channel gates
``[B, T, HV, K]``, matrix states ``[B, HV, K, V]``. ``g`` is always a *natural-log decay*, ``g <= 0``, and -inf a full
reset, through which no derivative runs; ``beta`` a write strength. ``cu_seqlens [S + 1]`` bounds S segments,
``attention_mask [B, T]`` is 1 at real tokens. B and T may be zero, nothing else. What is not a number in one token
spoils its row from the token's chunk on, but no earlier chunk, no other row and no other packed segment. States and
accumulators are float32, or float64 for float64 inputs; the output has the dtype of v. ``scale`` multiplies q, or the
state as it is read where there is no q.

Patterns of einops name axes by these letters as they stand, ``"B T (H K) -> B T H K"``, and where the legend has none,
by those of the shapes beside them.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg

# Mind that softmax attention groups its heads the other way round.
Query = Annotated[Tensor, Arg("B T H K")]
Key = Annotated[Tensor, Arg("B T H K")]
UnitKey = Annotated[Tensor, Arg("B T H K", draw="unit")]
Value = Annotated[Tensor, Arg("B T HV V")]
Decay = Annotated[Tensor, Arg("B T HV", draw="log_decay")]
ChannelDecay = Annotated[Tensor, Arg("B T HV K", draw="log_decay")]
AnyDecay = Annotated[Tensor, Arg("B T HV K", "B T HV", draw="log_decay")]
HeadDecay = Annotated[Tensor, Arg("HV", "B T HV", draw="log_decay")]
Strength = Annotated[Tensor, Arg("B T HV", draw="strength")]
Channels = Annotated[Tensor, Arg("B T D")]
ChannelLogDecay = Annotated[Tensor, Arg("B T D", draw="log_decay")]
ChannelGate = Annotated[Tensor, Arg("B T D", draw="strength")]
ChannelSkip = Annotated[Tensor, Arg("D")]
ChannelStrength = Annotated[Tensor, Arg("B T HV K", draw="strength")]
