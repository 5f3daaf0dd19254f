"""DeltaFormer's solve: values minus what earlier rows have already said, then ordinary attention.

.. code-block:: text

    u_t = v_t - beta_t sum_{j < t} kappa(w_t, k_j) u_j ,      o_i = sum_{j <= i} kappa(q_i, k_j) u_j

The cache holds k and u, so it is as large as that of attention. Rows are solved a block at a time: what earlier
blocks contribute is one product, what happens inside the block one triangular system. The series
v - B v + B^2 v - ... is never formed: with the unnormalised exponential its terms cancel catastrophically.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from linrec.engines.attention.cache import KVCache, empty_cache
from linrec.engines.attention.engine import ATTENTION, AttentionTerms, CacheEngine, Weighing, block_rows
from linrec.engines.attention.fused import grouped_scores, masked_softmax, weighted_values
from linrec.engines.numerics.triangular import solve_unit_lower
from linrec.rule import Call, Terms

CHUNK = 64


@dataclass
class DeltaFormerTerms(Terms):
    """q ``[B, T, HQ, K]``; k and w ``[B, T, H, K]``, v ``[B, T, H, V]``, beta ``[B, T, H]``.

    kernel ``"exp"`` or ``"dot"``; ``normalize``: exp becomes softmax in both places.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    w: Tensor
    beta: Tensor
    kernel: str
    normalize: bool

    def over_time(self) -> dict[str, Tensor]:
        """The tensors with a time axis, by name."""
        return {"q": self.q, "k": self.k, "v": self.v, "w": self.w, "beta": self.beta}

    def empty(self, segments: int) -> KVCache:
        """A cache without tokens; its v column holds u."""
        return empty_cache(KVCache, (self.k, self.v), segments)

    def weights(self, scores: Tensor, keep: Tensor) -> Tensor:
        """kappa of the kept scores, zero elsewhere; scores and keep ``[..., n, S]``."""
        if self.kernel == "dot":
            return scores.masked_fill(~keep, 0.0)
        return masked_softmax(scores, keep) if self.normalize else scores.masked_fill(~keep, -torch.inf).exp()


class DeltaFormerEngine(CacheEngine):
    """See the module."""

    name = "attention + triangular"

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """At least float32: u is fed back, so its rounding errors would be too."""
        return torch.promote_types(dtype, torch.float32)

    def run_batch(
        self, terms: DeltaFormerTerms, cache: KVCache, lengths: Tensor | None, call: Call
    ) -> tuple[Tensor, KVCache]:
        """Solve for u, then attend over (k, u)."""
        u = solved_values(terms, cache, call.scale, block_rows(call, terms.v.shape[1], CHUNK))
        softmax = terms.kernel == "exp" and terms.normalize
        weigh = None if softmax else _weighing(terms)
        reading = AttentionTerms(terms.q, terms.k, u, weigh=weigh)
        return ATTENTION.run_batch(reading, cache, lengths, call)


def solved_values(terms: DeltaFormerTerms, cache: KVCache, scale: float, rows: int) -> Tensor:
    """u ``[B, T, H, V]`` of the call's tokens, ``rows`` at a time."""
    keys, held = torch.cat([cache.k, terms.k], dim=1), cache.k.shape[1]
    u = cache.v.transpose(1, 2)
    for i in range(0, terms.v.shape[1], rows):
        now = slice(i, i + rows)
        w, beta, v = (
            terms.w[:, now],
            terms.beta[:, now].transpose(1, 2)[..., None],
            terms.v[:, now].transpose(1, 2),
        )
        n, before = w.shape[1], held + i
        scores = grouped_scores(w * scale, keys[:, : before + n])[:, :, 0]
        weights = beta * terms.weights(scores, _strictly_before(cache.length, held, before, n, keys.device))
        fresh = solve_unit_lower(-weights[..., before:], v - weights[..., :before] @ u)
        u = torch.cat([u, fresh], dim=2)
    return u[:, :, held:].transpose(1, 2)


def _strictly_before(length: Tensor, held: int, before: int, n: int, device: torch.device) -> Tensor:
    """Which slots row i of a block may use ``[B, 1, n, before + n]``: real ones of the cache, and earlier tokens."""
    slots = torch.arange(before + n, device=device)
    real = (slots >= held) | (slots < length[:, None])
    return (real[:, None] & (slots < before + torch.arange(n, device=device)[:, None]))[:, None]


def _weighing(terms: DeltaFormerTerms) -> Weighing:
    def weigh(q: Tensor, k: Tensor, v: Tensor, distance: Tensor, scale: float) -> Tensor:
        keep = (distance >= 0)[:, None, None]
        return weighted_values(terms.weights(grouped_scores(q * scale, k), keep), v)

    return weigh


DELTA_FORMER = DeltaFormerEngine()
