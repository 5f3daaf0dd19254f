"""Titans' neural memory."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.fastweight import FASTWEIGHT, MomentumTerms
from linrec.errors import ShapeError
from linrec.rule import Options, Query, UnitKey, Unpack, rule
from linrec.rules.ttt_linear import SEQUENTIAL, LearningRate

Written = Annotated[Tensor, Arg("B T H V")]
Fade = Annotated[Tensor, Arg("B T H", draw="log_decay")]
WeakDecay = Annotated[Tensor, Arg("B T H", draw="weak_decay")]
First = Annotated[Tensor, Arg("H K P")]
Second = Annotated[Tensor, Arg("H P V")]


@rule(engine=FASTWEIGHT, state="3*(K*P+P*V)", scale="1", missing={"parallel": SEQUENTIAL})
def titans(
    q: Query,
    k: UnitKey,
    v: Written,
    lr: LearningRate,
    g: WeakDecay,
    mu: Fade,
    w1: First,
    w2: Second | None = None,
    mini_batch: int = 16,
    **options: Unpack[Options],
) -> MomentumTerms:
    """Titans' memory: gradient steps with momentum and weight decay (Behrouz, Zhong, Mirrokni 2025, arXiv:2501.00663).

    .. code-block:: text

        Mom_t = e^{μ_t} Mom_{t-1} - lr_t ∇|f(k_t) - v_t|²,  M_t = e^{g_t} M_{t-1} + Mom_t,  o_t = f_t(q_t)

    Gradients are taken at the weights of the mini-batch's start. f(x) = gelu(x W1) W2, or x W1 without ``w2``. q, k
    ``[B, T, H, K]``, v ``[B, T, H, V]``, lr, g = log(1 - alpha) <= 0 and mu = log eta <= 0 ``[B, T, H]``, first weights
    w1 ``[H, K, P]``, w2 ``[H, P, V]``. The state is a ``FastState``: weights at the mini-batch's start, now, and the
    momentum. ``scale`` multiplies q; default 1. Raises ShapeError for a mini_batch below 1 or weights that do not end
    in V channels.
    """
    if mini_batch < 1:
        raise ShapeError(f"titans: mini_batch must be a positive integer, got {mini_batch!r}")
    maps = (w1,) if w2 is None else (w1, w2)
    if maps[-1].shape[2] != v.shape[3]:
        raise ShapeError(
            f"titans: the last weights must have V={v.shape[3]} columns, got {list(maps[-1].shape)}"
        )
    return MomentumTerms(
        q,
        k,
        v,
        maps,
        mini_batch,
        lambda z, k, v: 2 * (z - v),
        lambda q, z: z,
        False,
        g,
        mu,
        lr,
        torch.ones_like(lr),
    )
