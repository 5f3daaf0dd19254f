"""The dual form: every token reads with its own weights, and none of them is formed.

The network is a chain of linear maps with gelu between them; a bias is the last row of its map, met by a channel of
ones. With x_j the inputs and d_j the output gradients of one map at token j, weights at row i are

.. code-block:: text

    W_i = rho_i W + sigma_i Momentum - sum_{j <= i} A_ij x_j d_j^T
    y W_i = rho_i (y W) + sigma_i (y Momentum) - (A * (Y X^T)) D |_i
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.fastweight.engine import FastState, FastTerms, Maps
from linrec.engines.numerics.decays import between, cumulative_decay, grown, lower


class Rows(NamedTuple):
    """Coefficients of a block of n tokens: rho, sigma ``[B, H, n]``, A ``[B, H, n, n]``.

    After the block the momentum is keep Momentum - sum_j gather_j x_j d_j^T (keep ``[B, H]``, gather ``[B, H, n]``).
    """

    rho: Tensor
    sigma: Tensor
    A: Tensor
    keep: Tensor
    gather: Tensor


@dataclass
class DualTerms(FastTerms):
    """``gradient(z, k, v)``: of the loss by the network's output z; ``read(q, z)``: the rule's output, pointwise."""

    gradient: Callable[[Tensor, Tensor, Tensor], Tensor]
    read: Callable[[Tensor, Tensor], Tensor]
    bias: bool

    def rows(self, x: dict[str, Tensor], first: int) -> Rows:
        """The block's coefficients."""
        raise NotImplementedError

    def output(self, q: Tensor, read: Tensor) -> Tensor:
        """See FastTerms."""
        return self.read(q, read)

    def block(self, x: dict[str, Tensor], first: int, memory: FastState) -> tuple[Tensor, FastState]:
        """See FastTerms."""
        rows = self.rows(x, first)
        inputs, deltas = self._learn(x, memory.start)
        base = memory.start if memory.now is None else memory.now
        y = x["q"]
        for layer, (w, m, xs, d) in enumerate(zip(base, memory.momentum, inputs, deltas, strict=True)):
            y = self._with_ones(gelu(y) if layer else y)
            y = rows.rho[..., None] * (y @ w) + rows.sigma[..., None] * (y @ m) - (rows.A * (y @ xs.mT)) @ d
        now = (
            None
            if memory.now is None
            else tuple(
                rows.rho[..., -1, None, None] * w
                + rows.sigma[..., -1, None, None] * m
                - (rows.A[..., -1, :, None] * xs).mT @ d
                for w, m, xs, d in zip(memory.now, memory.momentum, inputs, deltas, strict=True)
            )
        )
        momentum = tuple(
            rows.keep[..., None, None] * m - (rows.gather[..., None] * xs).mT @ d
            for m, xs, d in zip(memory.momentum, inputs, deltas, strict=True)
        )
        return y, memory._replace(now=now, momentum=momentum)

    def _with_ones(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 1), value=1.0) if self.bias else x

    def _learn(self, x: dict[str, Tensor], weights: Maps) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and output gradients of every map, at the mini-batch's first weights."""
        inputs, hidden, y = [], [], x["k"]
        for layer, w in enumerate(weights):
            inputs.append(self._with_ones(gelu(y) if layer else y))
            y = inputs[-1] @ w
            hidden.append(y)
        deltas = [self.gradient(y, x["k"], x["v"])]
        for w, z in zip(weights[:0:-1], hidden[-2::-1], strict=True):
            back = deltas[0] @ w.mT
            deltas.insert(0, through_gelu(back[..., :-1] if self.bias else back, z))
        return inputs, deltas


@dataclass
class RowTerms(DualTerms):
    """TTT: W_i = W - token_i sum_{j <= i} lr_j grad_j; token ``[mini_batch]``, lr ``[B, T, H]``.

    The momentum is the sum of lr_j grad_j so far in the mini-batch.
    """

    token: Tensor
    lr: Tensor

    def gates(self) -> dict[str, Tensor]:
        """lr."""
        return {"lr": self.lr}

    def rows(self, x: dict[str, Tensor], first: int) -> Rows:
        """See the class."""
        lr = x["lr"]
        token = self.token[first : first + lr.shape[2]].expand_as(lr)
        one = torch.ones_like(lr)
        return Rows(one, -token, (token[..., None] * lr[..., None, :]).tril(), one[..., 0], -lr)

    def finished(self, memory: FastState) -> FastState:
        """The last row's weights start the next mini-batch."""
        last = self.token[-1]
        start = tuple(w - last * m for w, m in zip(memory.start, memory.momentum, strict=True))
        return memory._replace(start=start, momentum=tuple(torch.zeros_like(m) for m in memory.momentum))


@dataclass
class MomentumTerms(DualTerms):
    """Titans: Mom_t = e^{mu_t} Mom_{t-1} - lr_t grad_t, W_t = e^{g_t} W_{t-1} + Mom_t; gates ``[B, T, H]``.

    real: one for every token, so that padding (zero) moves nothing.
    """

    g: Tensor
    mu: Tensor
    lr: Tensor
    real: Tensor

    has_now = True

    def gates(self) -> dict[str, Tensor]:
        """g, mu, lr and real."""
        return {"g": self.g, "mu": self.mu, "lr": self.lr, "real": self.real}

    def rows(self, x: dict[str, Tensor], first: int) -> Rows:
        """A = (decays of the weights) Diag(real) (decays of the momentum) Diag(lr): every exponent is <= 0."""
        lr = x["lr"]
        total = cumulative_decay(torch.stack([x["g"], x["mu"]]), -1)[..., None]
        within = between(total, total, lower(lr.shape[-1], lr.device), lr)
        decay, fade = grown(total, lr)[..., 0]
        weights = within[0] * x["real"][..., None, :]
        sigma = (weights @ fade[..., None])[..., 0]
        return Rows(
            decay, sigma, weights @ within[1] * lr[..., None, :], fade[..., -1], within[1, ..., -1, :] * lr
        )

    def finished(self, memory: FastState) -> FastState:
        """Gradients are taken at the current weights from here on."""
        assert memory.now is not None
        return memory._replace(start=memory.now)


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation of x ``[...]``, as in TTT."""
    return F.gelu(x, approximate="tanh")


def through_gelu(back: Tensor, z: Tensor) -> Tensor:
    """The gradient of z ``[...]`` from that of gelu(z), back like z."""
    return torch.ops.aten.gelu_backward(back, z, approximate="tanh")
