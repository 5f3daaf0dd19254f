"""One chunk after another, each expanded where it is used and, for the backward pass, expanded again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from linrec.engines.diagonal.terms import DiagonalTerms
from linrec.engines.numerics.forward_mode import forward_mode

OneChunk = Callable[[DiagonalTerms, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def in_chunks(
    terms: DiagonalTerms, h: Tensor, lengths: Tensor | None, chunk: int, one_chunk: OneChunk
) -> tuple[Tensor, Tensor]:
    """Chunk after chunk of ``chunk`` tokens, from the state ``h [B, ...]``; token by token is a chunk of one.

    Row b has ``lengths [B]`` tokens, then padding.
    """
    outputs, constants = [], tuple(terms.constants.values())
    # split, because the gradients of its parts are joined once; those of slices are each padded to full length
    parts = zip(*(x.split(chunk, dim=1) for x in terms.tokens.values()), strict=True)
    for number, part in enumerate(parts):
        real = None if lengths is None else _real(lengths, number * chunk, part[0].shape[1])

        def one(h: Tensor, *tensors: Tensor, real: Tensor | None = real) -> tuple[Tensor, Tensor]:
            return one_chunk(terms.holding(tensors), h, real)

        tensors = h, *part, *constants
        o, h = recomputed(one, *tensors) if terms.recompute and chunk > 1 else one(*tensors)
        outputs.append(o)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), h


def without_padding(
    terms: DiagonalTerms, decay: Tensor, x: Tensor, real: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Expanded decays and inputs; where ``real`` ``[B, L]`` is false they leave the state as it is.

    decay ``[1 or B, 1 or L, ...]``, x ``[B, L, ...]``.
    """
    if real is None:
        return decay, x
    real = real.reshape(*real.shape, *[1] * (x.dim() - 2))
    return torch.where(real, decay, 0.0 if terms.log else 1.0), torch.where(real, x, 0.0)


def _real(lengths: Tensor, start: int, count: int) -> Tensor:
    return torch.arange(start, start + max(count, 0), device=lengths.device) < lengths[:, None]


def recomputed(one: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Keep nothing of a chunk but ``tensors``, all that a caller may change in place: torch looks for that there.

    torch.func's transforms and forward mode cannot, and keep everything."""
    if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or forward_mode():
        return one(*tensors)
    return checkpoint(one, *tensors, use_reentrant=False, preserve_rng_state=False)
