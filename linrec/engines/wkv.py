"""Exponentially weighted averages of values, one a channel, with a running maximum: RWKV-4's attention.

.. code-block:: text

    num_t = e^{w} num_{t-1} + e^{k_t} v_t;   den_t = e^{w} den_{t-1} + e^{k_t}
    o_t = (num_{t-1} + e^{u + k_t} v_t) / (den_{t-1} + e^{u + k_t})

The state holds e^{-m} num, e^{-m} den and m: the diagonal recurrence twice, relative to the running maximum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from linrec.engines.diagonal import DIAGONAL, DiagonalTerms, Tokens
from linrec.engines.diagonal.engine import scan_batch
from linrec.engines.numerics.backends import chosen_backend
from linrec.engines.numerics.checks import checked_state
from linrec.engines.numerics.maxplus import stabiliser
from linrec.engines.numerics.scans import EMPTY, NOTHING
from linrec.packing import by_segment
from linrec.rule import Call, Terms


class WKVState(NamedTuple):
    """num and den ``[B, D]`` divided by e^m, and m ``[B, D]``, -1e38 while nothing has been seen.

    m is a unit of measurement, so derivatives of num and den hold it fixed.
    """

    num: Tensor
    den: Tensor
    m: Tensor


@dataclass
class WKVTerms(Terms):
    """k, v ``[B, T, D]``; w ``[D]`` log-decay, u ``[D]`` the current token's bonus."""

    k: Tensor
    v: Tensor
    w: Tensor
    u: Tensor

    def over_time(self) -> dict[str, Tensor]:
        """k and v."""
        return {"k": self.k, "v": self.v}


class WKVEngine:
    """See :mod:`linrec.engines.wkv`."""

    name = "wkv"

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """As the diagonal engine."""
        return DIAGONAL.compute_dtype(dtype)

    def auto_backend(self, device: str) -> str:
        """As the diagonal engine."""
        return DIAGONAL.auto_backend(device)

    def init_state(self, terms: WKVTerms, segments: int) -> WKVState:
        """Nothing seen."""
        shape = (segments, terms.k.shape[2])
        return WKVState(*(terms.k.new_full(shape, value) for value in (0.0, 0.0, EMPTY)))

    def run(self, terms: WKVTerms, state: WKVState | None, call: Call, who: str) -> tuple[Tensor, WKVState]:
        """Output ``[B, T, D]`` in accumulator precision, and the final state."""
        call = call._replace(backend=chosen_backend(call, who, terms.k, terms.v))
        empty = self.init_state(terms, terms.segments(call))
        state = empty if state is None else checked_state(state, empty, who)
        if call.bounds is None and call.backend != "triton" and terms.k.shape[1] == 1:
            return _one_token(terms, state, call.scale)
        if call.bounds is None:
            return _run_batch(terms, state, None, call)

        def run(tensors: Tokens, rows: WKVState, lengths: Tensor) -> tuple[Tensor, WKVState]:
            return _run_batch(replace(terms, k=tensors["k"], v=tensors["v"]), rows, lengths, call)

        return by_segment(run, terms.over_time(), state, call.bounds)


def _average(m: Tensor, num: Tensor, den: Tensor, now: Tensor, v: Tensor, scale: float) -> Tensor:
    """Of what the sums hold, in units of e^m, and the current token's v with weight e^now."""
    top = torch.maximum(m, now)
    old, new = (m - top).exp(), (now - top).exp()
    o = (old * num + new * v) / (old * den + new)
    return o if scale == 1 else scale * o


def _one_token(terms: WKVTerms, state: WKVState, scale: float) -> tuple[Tensor, WKVState]:
    """The sums once; the same in every form."""
    k, v = terms.k.squeeze(1), terms.v.squeeze(1)
    o = _average(state.m, state.num, state.den, terms.u + k, v, scale)
    m = torch.maximum(terms.w + state.m, k).detach().clamp(min=EMPTY)
    decay, weight = (terms.w + (state.m - m)).exp(), (k - m).exp()
    return o[:, None], WKVState(decay * state.num + weight * v, decay * state.den + weight, m)


def _run_batch(
    terms: WKVTerms, state: WKVState, lengths: Tensor | None, call: Call
) -> tuple[Tensor, WKVState]:
    forget, gain = _without_padding(terms, lengths)
    m, g, weight = stabiliser(forget, gain, state.m)
    every = torch.cat([state.m[:, None], m], dim=1)
    tokens = {
        "g": g.clamp(min=NOTHING)[..., None],
        "x": torch.stack([weight * terms.v, weight], dim=-1),
        "before": every[:, :-1],
        "k": terms.k,
        "v": terms.v,
    }

    def average(t: Tokens, h: Tensor) -> Tensor:
        """The state is one token old, in units of e^{before}; the current token is not decayed but weighted by u."""
        return _average(t["before"], h[..., 0], h[..., 1], terms.u + t["k"], t["v"], call.scale)

    scan = DiagonalTerms(
        tokens,
        lambda t: (t["g"], t["x"]),
        channels=(terms.k.shape[2], 2),
        read=average,
        late=True,
        parallel="quadratic",
    )
    o, sums = scan_batch(scan, torch.stack([state.num, state.den], dim=-1), lengths, call._replace(scale=1.0))
    return o, WKVState(sums[..., 0], sums[..., 1], every[:, -1])


def _without_padding(terms: WKVTerms, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-decays and log-weights of the tokens; what follows a row's own tokens leaves the maximum as it is."""
    forget = terms.w.expand(terms.k.shape)
    if lengths is None:
        return forget, terms.k
    real = torch.arange(terms.k.shape[1], device=terms.k.device) < lengths[:, None]
    return torch.where(real[..., None], forget, 0.0), torch.where(real[..., None], terms.k, EMPTY)


WKV = WKVEngine()
