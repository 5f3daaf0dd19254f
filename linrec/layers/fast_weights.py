"""Layers whose state is a small network in training: TTT-Linear, TTT-MLP, Titans, LaCT."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linrec import rules
from linrec.errors import ConfigError
from linrec.layers.heads import HeadsLayer
from linrec.layers.parts import widened
from linrec.rule import Rule


class FastWeightLayer(HeadsLayer):
    """The frame with as many value heads as key heads, a learning rate a token and head, and first weights.

    ``base_lr`` sigmoid(x W + b) is the learning rate; ``mini_batch`` the tokens whose gradients are taken together.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        mini_batch: int = 16,
        base_lr: float = 1.0,
        conv_size: int = 4,
        **sizes: Any,
    ):
        super().__init__(d_model, num_heads, conv_size=conv_size, **sizes)
        if self.num_v_heads != self.num_heads or mini_batch < 1:
            raise ConfigError(
                f"{type(self).__name__}: num_v_heads={self.num_v_heads} must equal num_heads={self.num_heads}, and "
                f"mini_batch={mini_batch} be positive"
            )
        self.mini_batch, self.base_lr = mini_batch, base_lr
        self.lr_proj = nn.Linear(d_model, num_heads)

    def rate(self, x: Tensor) -> Tensor:
        """``[B, T, d_model] -> [B, T, H]``, the learning rate."""
        return self.base_lr * widened(self.lr_proj(x)).sigmoid()

    def first_map(self, rows: int, columns: int) -> nn.Parameter:
        """First weights ``[H, rows, columns]`` that keep the size of what they act on; ConfigError for no numbers."""
        if rows < 1 or columns < 1:
            raise ConfigError(
                f"{type(self).__name__}: a memory of {rows} x {columns} numbers a head holds nothing; head_dim and "
                "memory_width must be positive"
            )
        return nn.Parameter(torch.randn(self.num_heads, rows, columns) * rows**-0.5)


class TTTLinear(FastWeightLayer):
    """TTT-Linear layer (Sun et al. 2024, arXiv:2407.04620), in the paper's convolutional backbone.

    Short convolution of width 4 on q, k, v; learning rate ``base_lr`` sigmoid(x W + b) / K; the factor of place i in
    a mini-batch is max(0, 1 / i + learned); RMSNorm on each head and a swish gate.
    """

    rule: ClassVar[Rule] = rules.ttt_linear

    def __init__(self, d_model: int, num_heads: int = 4, *, base_lr: float = 1.0, **options: Any):
        super().__init__(d_model, num_heads, base_lr=base_lr, **options)
        if self.value_dim != self.head_dim:
            raise ConfigError(f"{type(self).__name__}: values are as wide as keys, got expand_v other than 1")
        self.place = nn.Parameter(torch.zeros(self.mini_batch))
        self.loss_weight = nn.Parameter(torch.ones(num_heads, self.head_dim))
        self.loss_bias = nn.Parameter(torch.zeros(num_heads, self.head_dim))
        self.make_memory()

    def make_memory(self) -> None:
        """The first weights."""
        self.w = self.first_map(self.head_dim, self.head_dim)
        self.b = nn.Parameter(torch.zeros(self.num_heads, self.head_dim))

    def memory(self) -> dict[str, Tensor]:
        """The rule's arguments of the first weights."""
        return {"w": self.w, "b": self.b}

    def gates(self, x: Tensor) -> dict[str, Any]:
        """lr ``[B, T, H]``, token ``[mini_batch]``, the loss's norm, the first weights."""
        places = torch.arange(1, self.mini_batch + 1, device=x.device)
        token = (widened(self.place) + 1 / places).clamp(min=0)
        norm = {"norm_weight": self.loss_weight, "norm_bias": self.loss_bias}
        return {"lr": self.rate(x) / self.head_dim, "token": token, **norm, **self.memory()}


class TTTMLP(TTTLinear):
    """TTT-MLP layer (Sun et al. 2024, arXiv:2407.04620): two layers, ``memory_width`` (4 K) between them."""

    rule = rules.ttt_mlp

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        memory_width: int | None = None,
        base_lr: float = 0.1,
        **options: Any,
    ):
        self.memory_width = memory_width
        super().__init__(d_model, num_heads, base_lr=base_lr, **options)

    def make_memory(self) -> None:
        """The first weights."""
        width = 4 * self.head_dim if self.memory_width is None else self.memory_width
        self.w1, self.w2 = self.first_map(self.head_dim, width), self.first_map(width, self.head_dim)
        self.b1 = nn.Parameter(torch.zeros(self.num_heads, width))
        self.b2 = nn.Parameter(torch.zeros(self.num_heads, self.head_dim))

    def memory(self) -> dict[str, Tensor]:
        """The rule's arguments of the first weights."""
        return {"w1": self.w1, "b1": self.b1, "w2": self.w2, "b2": self.b2}


class Titans(FastWeightLayer):
    """Titans' memory as a layer (Behrouz, Zhong, Mirrokni 2025, arXiv:2501.00663).

    Short convolution with SiLU, L2-normalised q and k; learning rate, momentum and weight decay from the input; a
    memory of ``memory_depth`` layers (1 or 2), ``memory_width`` (4 K) between them.
    """

    rule = rules.titans
    unit_keys: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        memory_depth: int = 2,
        memory_width: int | None = None,
        base_lr: float = 0.05,
        **options: Any,
    ):
        super().__init__(d_model, num_heads, base_lr=base_lr, **options)
        if memory_depth not in (1, 2):
            raise ConfigError(f"Titans: memory_depth must be 1 or 2, got {memory_depth}")
        if memory_depth == 1 and memory_width is not None:
            raise ConfigError(f"Titans: a memory of one layer has no memory_width, got {memory_width}")
        inner = 4 * self.head_dim if memory_width is None else memory_width
        width = inner if memory_depth == 2 else self.value_dim
        self.w1 = self.first_map(self.head_dim, width)
        self.w2 = self.first_map(width, self.value_dim) if memory_depth == 2 else None
        self.momentum_proj = nn.Linear(d_model, num_heads)
        self.decay_proj = nn.Linear(d_model, num_heads)
        nn.init.constant_(self.decay_proj.bias, -4.0)  # at first the memory forgets two percent a token

    def gates(self, x: Tensor) -> dict[str, Any]:
        """lr, g, mu ``[B, T, H]`` and the first weights."""
        return {
            "lr": self.rate(x),
            "g": -F.softplus(widened(self.decay_proj(x))),
            "mu": F.logsigmoid(widened(self.momentum_proj(x))),
            "w1": self.w1,
            "w2": self.w2,
            "mini_batch": self.mini_batch,
        }


class LargeChunkTTT(FastWeightLayer):
    """Large-chunk test-time training as a layer, LaCT (Zhang et al. 2025, arXiv:2505.23884).

    SiLU and L2 norm on q and k; a SwiGLU memory of ``memory_width`` (2 K), one Muon step every ``mini_batch`` tokens.
    Tokens of one chunk do not see each other: pair it with window attention in the model's pattern.
    """

    rule = rules.large_chunk_ttt
    activation: bool = True
    unit_keys: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        mini_batch: int = 2048,
        memory_width: int | None = None,
        muon: bool = True,
        conv_size: int = 0,
        **options: Any,
    ):
        super().__init__(d_model, num_heads, mini_batch=mini_batch, conv_size=conv_size, **options)
        width = 2 * self.head_dim if memory_width is None else memory_width
        self.w1, self.w3 = self.first_map(self.head_dim, width), self.first_map(self.head_dim, width)
        self.w2 = self.first_map(width, self.value_dim)
        self.muon = muon

    def gates(self, x: Tensor) -> dict[str, Any]:
        """lr ``[B, T, H]``, the first weights, and how steps are taken."""
        weights = {"w1": self.w1, "w2": self.w2, "w3": self.w3}
        return {"lr": self.rate(x), **weights, "mini_batch": self.mini_batch, "muon": self.muon}
