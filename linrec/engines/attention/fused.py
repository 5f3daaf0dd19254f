"""torch's scaled_dot_product_attention in the kit's layout, and the merge of partial results."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.numerics.checks import transformed
from linrec.engines.numerics.decays import lower
from linrec.engines.numerics.derivatives import differentiable_again


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False, scale: float
) -> Tensor:
    """q ``[B, n, HQ, K]``, k ``[B, S, H, K]``, v ``[B, S, H, V]`` -> ``[B, n, HQ, V]``, with grouped heads.

    ``mask [B, HQ, n, S]``, or what broadcasts to it, is boolean (true: attend) or an additive float bias. The fused
    kernels have first derivatives in reverse mode only; all others are those of :func:`_in_products`.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    plain = partial(_in_products, causal=causal, scale=scale)
    operands = [q, k, v] if mask is None else [q, k, v, mask]
    if transformed(*operands):
        return plain(*operands)[0].transpose(1, 2)
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    return differentiable_again(o, plain, *operands).transpose(1, 2)


def _in_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool, scale: float
) -> tuple[Tensor]:
    """The same, heads first, in calls that can be differentiated any number of times and in both modes."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) * scale) @ k.to(wide).mT
    keep = lower(q.shape[2], q.device) if causal else torch.ones_like(scores, dtype=torch.bool)
    if mask is not None and mask.dtype == torch.bool:
        keep = keep & mask
    elif mask is not None:
        keep = keep & ~torch.isneginf(mask)
        scores = scores + mask.masked_fill(torch.isneginf(mask), 0.0)
    return ((masked_softmax(scores, keep) @ v.to(wide)).to(q.dtype),)


def merge(o1: Tensor, lse1: Tensor, o2: Tensor, lse2: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint key sets from the attention over each: outputs and log-sum-exps of the scores.

    o1, o2 ``[..., V]``, lse1, lse2 ``[...]``; a set without keys has lse = -inf and any finite output.
    """
    lse = torch.logaddexp(lse1, lse2)
    base = lse.masked_fill(lse == -torch.inf, 0.0)
    return (lse1 - base).exp()[..., None] * o1 + (lse2 - base).exp()[..., None] * o2, lse


def grouped_scores(q: Tensor, k: Tensor) -> Tensor:
    """q ``[B, n, HQ, K]``, k ``[B, S, H, K]`` -> q . k ``[B, H, HQ // H, n, S]``, at least in float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q = q.to(wide).unflatten(2, (k.shape[2], -1)).permute(0, 2, 3, 1, 4)  # B n (H R) K -> B H R n K
    return q @ k.to(wide).permute(0, 2, 3, 1)[:, :, None]  # B S H K -> B H 1 K S


def weighted_values(weights: Tensor, v: Tensor) -> Tensor:
    """weights ``[B, H, R, n, S]``, v ``[B, S, H, V]`` -> ``[B, n, H * R, V]``."""
    o = weights @ v.to(weights.dtype).transpose(1, 2)[:, :, None]
    return o.permute(0, 3, 1, 2, 4).flatten(2, 3)  # B H R n V -> B n (H R) V


def masked_softmax(scores: Tensor, keep: Tensor) -> Tensor:
    """Softmax of scores ``[..., S]`` over the kept entries of each row, keep like scores; a row without any is zero."""
    scores = scores.masked_fill(~keep, -torch.inf)
    top = scores.detach().amax(-1, keepdim=True) if scores.shape[-1] else scores.new_zeros(1)
    weights = (scores - top.masked_fill(top == -torch.inf, 0.0)).exp()
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)
