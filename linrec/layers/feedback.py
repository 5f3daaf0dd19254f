"""Softmax attention with feedback or other positions: ALiBi, FoX, stick-breaking, CoPE, DeltaFormer, PaTH."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linrec import rules
from linrec.layers.delta import low_rank
from linrec.layers.parts import ConstantDecay, ShortConvolution, merge_heads, split_heads, unit_norm, widened
from linrec.layers.projection import project
from linrec.layers.softmax import SoftmaxAttention
from linrec.state import State


class Alibi(SoftmaxAttention):
    """Attention with linear biases instead of rotation (Press, Smith, Lewis 2021, arXiv:2108.12409)."""

    rule = rules.alibi

    def __init__(self, d_model: int, num_heads: int = 4, *, rope_base: float | None = None, **options: Any):
        super().__init__(d_model, num_heads, rope_base=rope_base, **options)
        self.decay = ConstantDecay(rules.alibi_decay(num_heads))

    def gates(self, x: Tensor) -> dict[str, Any]:
        """g ``[HQ]``."""
        return {"g": self.decay()}


class ForgettingAttention(SoftmaxAttention):
    """The Forgetting Transformer's attention (Lin et al. 2025, arXiv:2503.02130).

    A forget gate sigmoid(x W + b) for each query head takes the place of positions; ``qk_norm`` as in the paper's
    "Pro" block.
    """

    rule = rules.forgetting_attention

    def __init__(self, d_model: int, num_heads: int = 4, *, rope_base: float | None = None, **options: Any):
        super().__init__(d_model, num_heads, rope_base=rope_base, **options)
        self.f_proj = nn.Linear(d_model, num_heads)

    def gates(self, x: Tensor) -> dict[str, Any]:
        """g ``[B, T, HQ]``."""
        return {"g": F.logsigmoid(widened(self.f_proj(x)))}


class StickBreaking(SoftmaxAttention):
    """Stick-breaking attention (Tan et al. 2024, arXiv:2410.17980); no rotation."""

    rule = rules.stick_breaking

    def __init__(self, d_model: int, num_heads: int = 4, *, rope_base: float | None = None, **options: Any):
        super().__init__(d_model, num_heads, rope_base=rope_base, **options)


class Cope(SoftmaxAttention):
    """Contextual position encoding (Golovneva et al. 2024, arXiv:2405.18719).

    ``num_positions`` embeddings of counted positions, shared by the heads; counts beyond them are clipped.
    """

    rule = rules.cope

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        num_positions: int = 64,
        rope_base: float | None = None,
        **options: Any,
    ):
        super().__init__(d_model, num_heads, rope_base=rope_base, **options)
        self.emb = nn.Parameter(torch.zeros(num_positions, self.head_dim))

    def gates(self, x: Tensor) -> dict[str, Any]:
        """emb ``[E, K]``."""
        return {"emb": self.emb}


class DeltaFormer(SoftmaxAttention):
    """DeltaFormer (Zhong et al. 2025, arXiv:2505.19488): attention over values that erase each other first.

    beta = sigmoid(x W) for each key head; rotary embedding as in the baseline.
    """

    rule = rules.delta_former

    def __init__(self, d_model: int, num_heads: int = 4, *, normalize: bool = True, **options: Any):
        super().__init__(d_model, num_heads, **options)
        self.normalize = normalize
        self.b_proj = nn.Linear(d_model, self.num_kv_heads, bias=False)

    def gates(self, x: Tensor) -> dict[str, Any]:
        """beta ``[B, T, H]``."""
        return {"beta": widened(self.b_proj(x)).sigmoid(), "normalize": self.normalize}


class PathState(NamedTuple):
    """conv ``[B, w - 1, H K]`` (None without convolution), cache: the rule's."""

    conv: Tensor | None
    cache: Any


class PathAttention(SoftmaxAttention):
    """PaTH attention (Yang et al. 2025, arXiv:2505.16381).

    w: a projection through ``w_rank`` channels (None: full), a short convolution of ``w_conv`` with SiLU, unit
    length; beta = 2 sigmoid(x W + b); with ``use_forget_gate`` also FoX's gate on each query head.
    """

    rule = rules.path_attention

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        rope_base: float | None = None,
        w_rank: int | None = 32,
        w_conv: int = 3,
        use_forget_gate: bool = False,
        **options: Any,
    ):
        super().__init__(d_model, num_heads, rope_base=rope_base, **options)
        width = self.num_kv_heads * self.head_dim
        self.w_proj = low_rank(d_model, w_rank, width) if w_rank else nn.Linear(d_model, width, bias=False)
        self.w_conv = ShortConvolution(width, w_conv) if w_conv else None
        self.b_proj = nn.Linear(d_model, self.num_kv_heads)
        self.f_proj = nn.Linear(d_model, num_heads) if use_forget_gate else None

    def gates(self, x: Tensor) -> dict[str, Any]:
        """beta ``[B, T, H]``, g ``[B, T, HQ]`` or None."""
        g = None if self.f_proj is None else F.logsigmoid(widened(self.f_proj(x)))
        return {"beta": 2 * widened(self.b_proj(x)).sigmoid(), "g": g}

    def mix(self, x: Tensor, state: State, cu_seqlens: Tensor | None) -> tuple[Tensor, State]:
        """See :class:`Layer`."""
        state = state or PathState(None, None)
        q, k, v = self.heads(x, state.cache, cu_seqlens)
        w, conv = project(self.w_proj, x), None
        if self.w_conv is not None:
            w, conv = self.w_conv(w, state.conv, cu_seqlens)
        w = unit_norm(split_heads(w, self.num_kv_heads)).to(q.dtype)
        o, cache = self.rule(q, k, v, w, **self.gates(x), state=state.cache, cu_seqlens=cu_seqlens)
        return project(self.o_proj, merge_heads(o)), PathState(conv, cache)
