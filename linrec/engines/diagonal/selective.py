"""The structure that selective state spaces share: N states a channel, everything an outer product.

.. code-block:: text

    h_t[d, n] = a_t[d, n] h_{t-1}[d, n] + step_t[d] x_t[d] into_t[n]      a = e^{step rate}, or 1 + step rate
    o_t[d] = sum_n out_t[n] scale h_t[d, n] + skip[d] x_t[d]

Because all of ``[B, T, D, N]`` follows from tensors of ``[B, T, D]`` and ``[B, T, N]``, a backend can make it where it
is used. The description stands beside the general one, ``expand`` and ``read``, which :func:`selective_terms` derives
from it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.engines.diagonal.terms import DiagonalTerms, Selective, Tokens


def selective_terms(
    step: Tensor,
    x: Tensor,
    rate: Tensor,
    into: Tensor,
    out: Tensor,
    skip: Tensor | None = None,
    exponential: bool = True,
) -> DiagonalTerms:
    """See this module: step, x ``[B, T, D]``; rate, into, out ``[D, N]`` or ``[B, T, N]``, skip ``[D]``."""
    factors = {"rate": rate, "into": into, "out": out}
    constants = {name: y for name, y in factors.items() if y.dim() == 2}
    rows = {name: y.mT for name, y in constants.items()}
    held = rows if skip is None else rows | {"skip": skip}

    def states_first(t: Tokens, name: str) -> Tensor:
        return t[name].contiguous() if name in rows else t[name][..., None]

    def expand(t: Tokens) -> tuple[Tensor, Tensor]:
        exponent = t["step"][:, :, None] * states_first(t, "rate")
        written = (t["step"] * t["x"])[:, :, None] * states_first(t, "into")
        return exponent if exponential else 1 + exponent, written

    def read(t: Tokens, h: Tensor) -> Tensor:
        o = (t["out"].contiguous() * h).sum(2) if "out" in rows else (t["out"][:, :, None] @ h)[:, :, 0]
        return o if skip is None else torch.addcmul(o, t["skip"], t["x"])

    return DiagonalTerms(
        {"step": step, "x": x, **{name: y for name, y in factors.items() if y.dim() == 3}},
        expand,
        (x.shape[2], rate.shape[-1]),
        read,
        log=exponential,
        recompute=True,
        transposed=True,
        constants=held,
        selective=Selective(constants, skip, exponential),
    )
