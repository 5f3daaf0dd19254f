"""What the keywords of a forward call come to: columns of the mask, logits, targets; nothing is passed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from linrec.errors import ArgumentError, ShapeError
from linrec.layers.base import real_tokens
from linrec.models.documents import Documents
from linrec.models.read_cache import LinrecCache

# Keywords that tools pass along with these values, which ask for nothing, and why others are refused.
HARMLESS = {"output_attentions": False, "output_router_logits": False, "is_causal": True}
REASONS = {"is_causal": "the model is causal"}


def loss_options(
    kwargs: dict[str, Any],
    known: Sequence[str],
    labels: Tensor | None,
    num_items_in_batch: int | Tensor | None,
) -> dict[str, Any]:
    """What the loss takes; ArgumentError for every other keyword in ``kwargs`` that asks for something.

    labels ``[B, T]``; num_items_in_batch ``[]``.
    """
    options = {
        "labels": labels,
        "num_items_in_batch": num_items_in_batch,
        "shift_labels": kwargs.pop("shift_labels", None),
        "ignore_index": kwargs.pop("ignore_index", -100),
    }
    for name, value in kwargs.items():
        if name not in HARMLESS:
            raise ArgumentError(f"forward: the keyword {name!r} is not known; known are {', '.join(known)}")
        if value is not None and value is not HARMLESS[name]:
            raise ArgumentError(
                f"forward: {name}={value!r} cannot be honoured: {REASONS.get(name, 'there are no such outputs')}"
            )
    return options


def asks_loss(options: dict[str, Any]) -> bool:
    """Whether there is something to learn."""
    return options["labels"] is not None or options["shift_labels"] is not None


def own_columns(mask: Tensor | None, cache: LinrecCache, x: Tensor) -> Tensor | None:
    """The part of mask ``[B, T or more]`` that is of the new tokens x ``[B, T, d_model]``; a longer one covers what
    was read as well, and must agree with it."""
    if mask is None:
        return None
    length = x.shape[1]
    known = (length, length + (cache.count or 0))
    if (
        mask.dim() != 2
        or mask.shape[0] != x.shape[0]
        or (mask.shape[1] not in known and cache.count is not None)
    ):
        raise ShapeError(
            f"attention_mask: expected {[x.shape[0], length]}, as the tokens, or {[x.shape[0], known[1]]} with those "
            f"read before, got {list(mask.shape)}"
        )
    mask = real_tokens(mask)
    if mask.shape[1] > length and cache.count:
        before = mask[:, : cache.count]
        if not (bool(before.all()) if cache.real is None else torch.equal(before, cache.real)):
            raise ArgumentError(
                "attention_mask differs from the one with which the cache has read its tokens"
            )
    return mask[:, mask.shape[1] - length :]


def kept_logits(logits_to_keep: int | Tensor, with_loss: bool) -> tuple[slice | Tensor, int | None]:
    """Which columns have logits, and how many of the last columns that needs (None: all).

    So many of the last ones, or logits_to_keep ``[n]``, their numbers.
    """
    if isinstance(logits_to_keep, Tensor):
        if with_loss:
            raise ArgumentError("logits_to_keep contradicts labels: the loss needs every logit")
        return logits_to_keep, None
    if logits_to_keep < 0 or (logits_to_keep and with_loss):
        why = "the loss needs every logit" if with_loss else "expected 0 (all) or more"
        raise ArgumentError(f"logits_to_keep={logits_to_keep}: {why}")
    return (slice(-logits_to_keep, None), logits_to_keep) if logits_to_keep else (slice(None), None)


def targets(documents: Documents | None, x: Tensor, options: dict[str, Any]) -> Tensor:
    """What each position of x ``[B, T, d_model]`` is to predict ``[B, T]``, from the options of the loss.

    Nothing where the next token begins another document.
    """
    labels, shift_labels, ignore_index = (options[n] for n in ("labels", "shift_labels", "ignore_index"))
    given = {"shift_labels": shift_labels} if shift_labels is not None else {"labels": labels}
    for name, values in given.items():
        if values is not None and values.shape != x.shape[:2]:
            raise ShapeError(f"{name}: expected {list(x.shape[:2])}, as the tokens, got {list(values.shape)}")
    shifted = shift_labels
    if shifted is None:
        assert labels is not None
        shifted = F.pad(labels[:, 1:], (0, 1), value=ignore_index)
    elif labels is not None and not torch.equal(labels[:, 1:], shifted[:, :-1].to(labels)):
        raise ArgumentError(
            "labels and shift_labels contradict each other: expected the same ones, or one of the two"
        )
    if documents is None:
        return shifted
    return shifted.masked_fill(F.pad(documents.starts[:, 1:], (0, 1)).to(shifted.device), ignore_index)
