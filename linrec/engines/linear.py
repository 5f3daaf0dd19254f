"""Matrix products of activations with a weight, where only values are wanted."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.checks import only_values

WORTH = 1 << 20  # multiply-adds from which oneDNN's time to set up, some ten microseconds, is won back


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x ``[..., n]``, weight ``[m, n]``, bias ``[m]`` or None -> x weight^T + bias ``[..., m]``.

    Without gradients, in float32 on a CPU, through oneDNN: it reads the weight of one token at the speed of memory, and
    it uses the widest instructions of any processor, where the library behind ``torch.mm`` may do neither.
    """
    if _through_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise.default(x.contiguous(), weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _through_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.numel() * weight.shape[0] >= WORTH
        and only_values(x, weight)
        and x.dtype == weight.dtype == torch.float32
        and x.shape[-1] == weight.shape[1]
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_mkldnn_enabled()
        and _has_onednn()
    )


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
