"""TTT-Linear."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.fastweight import FASTWEIGHT, RowTerms
from linrec.engines.fastweight.norm_loss import norm_loss_gradient, normed
from linrec.errors import ShapeError
from linrec.rule import Key, Options, Query, Unpack, rule

Target = Annotated[Tensor, Arg("B T H K")]
LearningRate = Annotated[Tensor, Arg("B T H", draw="rate")]
TokenFactor = Annotated[Tensor, Arg("M", draw="positive")]
Norm = Annotated[Tensor, Arg("H K")]
Weight = Annotated[Tensor, Arg("H K K")]
Bias = Annotated[Tensor, Arg("H K")]

SEQUENTIAL = "a mini-batch's gradients are taken at weights that all earlier mini-batches have made"


def ttt_terms(
    q: Query,
    k: Key,
    v: Target,
    lr: LearningRate,
    token: TokenFactor,
    norm: tuple[Tensor, Tensor],
    maps: list[tuple[Tensor, Tensor]],
) -> RowTerms:
    """TTT's loss |LN(f(k)) - (v - k)|^2 / 2 and output q + LN(f(q)), for maps (W, b)."""
    weight, bias = (x[:, None] for x in norm)
    if token.shape[0] == 0:
        raise ShapeError(
            "test-time training: token must have a factor for each place of a mini-batch, got none"
        )
    return RowTerms(
        q,
        k,
        v,
        tuple(torch.cat([w, b[:, None]], dim=1) for w, b in maps),
        token.shape[0],
        lambda z, k, v: norm_loss_gradient(z, v - k, weight, bias),
        lambda q, z: q + weight * normed(z) + bias,
        True,
        token,
        lr,
    )


@rule(engine=FASTWEIGHT, state="2*(K*K+K)", scale="1", missing={"parallel": SEQUENTIAL})
def ttt_linear(
    q: Query,
    k: Key,
    v: Target,
    lr: LearningRate,
    token: TokenFactor,
    norm_weight: Norm,
    norm_bias: Norm,
    w: Weight,
    b: Bias,
    **options: Unpack[Options],
) -> RowTerms:
    """Test-time training of a linear map, TTT-Linear (Sun et al. 2024, arXiv:2407.04620).

    .. code-block:: text

        W_t = W_0 - token_t Σ_{j≤t} lr_j ∇½|LN(k_j W_0 + b_0) - (v_j - k_j)|²,  b_t likewise
        o_t = q_t + LN(q_t W_t + b_t)

    t and j are places in a mini-batch, whose size is that of ``token`` ``[M]``; W_0 is what the one before has left. q,
    k, v ``[B, T, H, K]``, lr ``[B, T, H]``, LN's ``norm_weight`` and ``norm_bias`` ``[H, K]`` (eps 1e-6), first weights
    w ``[H, K, K]``, b ``[H, K]``. The state is a ``FastState`` of differences from them and of the gradients of the
    unfinished mini-batch; ``chunk_size`` cannot enlarge a mini-batch. ``scale`` multiplies q; default 1.
    """
    return ttt_terms(q, k, v, lr, token, (norm_weight, norm_bias), [(w, b)])
