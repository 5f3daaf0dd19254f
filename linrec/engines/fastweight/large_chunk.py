"""Large-chunk test-time training: a chunk is read with the weights of its start, and then learned at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from linrec.engines.fastweight.engine import FastState, FastTerms
from linrec.engines.fastweight.muon import orthogonalised
from linrec.engines.numerics.forward_mode import silu


@dataclass
class LargeChunkTerms(FastTerms):
    """The memory f(x) = (silu(x W1) * (x W3)) W2 with weights (W1, W2, W3); lr ``[B, T, H]``; loss -sum lr v.f(k).

    The momentum is the gradient gathered in the chunk; ``muon``: it is orthogonalised before the step.
    """

    lr: Tensor
    muon: bool

    def gates(self) -> dict[str, Tensor]:
        """lr."""
        return {"lr": self.lr}

    def block(self, x: dict[str, Tensor], first: int, memory: FastState) -> tuple[Tensor, FastState]:
        """Apply, and gather gradients."""
        w1, w2, w3 = memory.start
        o = (silu(x["q"] @ w1) * (x["q"] @ w3)) @ w2
        z1, z3 = x["k"] @ w1, x["k"] @ w3
        gate = z1.sigmoid()
        dy = -x["lr"][..., None] * x["v"]
        dh = dy @ w2.mT
        slope = gate * (1 + z1 * (1 - gate))
        inputs = (x["k"], z1 * gate * z3, x["k"])
        deltas = (dh * z3 * slope, dy, dh * z1 * gate)
        gathered = zip(memory.momentum, inputs, deltas, strict=True)
        return o, memory._replace(momentum=tuple(m + xs.mT @ d for m, xs, d in gathered))

    def finished(self, memory: FastState) -> FastState:
        """One step with all of the chunk's gradient."""
        steps = [orthogonalised(m) if self.muon else m for m in memory.momentum]
        start = tuple(w - step for w, step in zip(memory.start, steps, strict=True))
        return memory._replace(start=start, momentum=tuple(torch.zeros_like(m) for m in memory.momentum))
