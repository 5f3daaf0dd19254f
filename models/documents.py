"""Where the documents of a packed batch begin, whichever of the usual names says it.

transformers' collators describe one and the same packing as ``position_ids`` that restart, as ``cu_seq_lens_q`` and
``cu_seq_lens_k`` or as ``seq_idx``; linrec's own name is ``cu_seqlens``. What is given is read and compared: arguments
that contradict each other raise ArgumentError.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linrec.errors import ArgumentError, ShapeError
from linrec.packing import check_cu_seqlens


class Documents(NamedTuple):
    """Real tokens one after another: ``where [N]`` in the flat batch, ``cu_seqlens [S + 1]`` in those N.

    ``starts [B, T]`` is true at the first token of every document.
    """

    where: Tensor
    cu_seqlens: Tensor
    starts: Tensor


class Described(NamedTuple):
    """The arguments that may describe documents; None where nothing was given."""

    position_ids: Tensor | None = None
    seq_idx: Tensor | None = None
    cu_seqlens: Tensor | None = None
    cu_seq_lens_q: Tensor | None = None
    cu_seq_lens_k: Tensor | None = None
    max_length_q: int | Tensor | None = None
    max_length_k: int | Tensor | None = None


def find_documents(
    given: Described,
    shape: tuple[int, int],
    mask: Tensor | None,
    device: torch.device,
    read: Tensor | None = None,
    continued: bool = False,
) -> Documents | None:
    """The documents, or None where every row is one.

    ``mask [B, T]`` is false at padding. ``continued``: there is a state; ``read [B]`` are the tokens in it, None
    if nobody knows, and positions must go on from there. Raises ArgumentError and ShapeError.
    """
    if all(value is None for value in given):
        return None
    real = torch.ones(shape, dtype=torch.bool, device=device) if mask is None else mask.bool()
    bounds = _bounds(given, shape, real)
    marks = {}
    if bounds is not None:
        marks["cu_seqlens"] = _marked(bounds, real)
    if given.seq_idx is not None:
        marks["seq_idx"] = _changes(_like(given.seq_idx, shape, "seq_idx"), real)
    if given.position_ids is not None:
        positions = _like(given.position_ids, shape, "position_ids")
        # A packed row whose documents all go on from states of their own may begin anywhere.
        own = continued and bounds is not None
        marks["position_ids"] = _restarts(positions, real, None if own else read, continued)
        if own:
            _check_inside(marks.pop("position_ids"), marks["cu_seqlens"])
    starts = _agreed(marks, real)
    longest = _lengths(starts, real).max() if real.any() else 0
    _check_longest(given, int(longest))
    if bounds is None and torch.equal(starts, _first_of_row(real)):
        return None
    if continued and bounds is None:
        raise ArgumentError(
            "a state continues one document a row, but "
            f"{' and '.join(marks)} begin new documents inside a row; give documents to continue as cu_seqlens, "
            "with a row of the state for each"
        )
    where = real.flatten().nonzero().flatten()
    if bounds is None:
        firsts = starts.flatten()[where].nonzero().flatten()
        bounds = torch.cat([firsts, firsts.new_tensor([len(where)])])
    return Documents(where, bounds.to(device), starts)


def _bounds(given: Described, shape: tuple[int, int], real: Tensor) -> Tensor | None:
    """Checked boundaries, from whichever of the three names has them."""
    names = ("cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")
    found = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if not found:
        return None
    if not real.all():
        raise ArgumentError(f"{', '.join(found)} exclude an attention_mask with padding")
    lists = {name: check_cu_seqlens(value, *shape, name) for name, value in found.items()}
    (first, bounds), *others = lists.items()
    for name, other in others:
        if other != bounds:
            raise ArgumentError(
                f"{first} says {bounds} and {name} says {other}: expected the same boundaries"
            )
    value: Tensor = found[first]
    return value


def _marked(bounds: Tensor, real: Tensor) -> Tensor:
    starts = torch.zeros_like(real)
    starts[0, bounds[:-1][bounds.diff() > 0].to(real.device)] = True
    return starts


def _like(values: Any, shape: tuple[int, int], name: str) -> Tensor:
    whole = isinstance(values, Tensor) and values.dtype in (torch.int64, torch.int32, torch.int16)
    if not whole or values.dim() not in (1, 2):
        came = getattr(values, "dtype", type(values).__name__)
        raise ArgumentError(f"{name}: expected whole numbers of shape {list(shape)}, got {came}")
    if values.shape[-1] != shape[1] or (values.dim() == 2 and values.shape[0] not in (1, shape[0])):
        raise ShapeError(f"{name}: expected shape {list(shape)}, as the tokens, got {list(values.shape)}")
    return values.expand(shape)


def _pairs(real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat places of the real tokens, and for all but the first whether the one before is of the same row."""
    where = real.flatten().nonzero().flatten()
    row = where // max(real.shape[1], 1)
    return where, row, row[1:] == row[:-1]


def _first_of_row(real: Tensor) -> Tensor:
    where, _, same = _pairs(real)
    return _scattered(real, where, torch.cat([same.new_ones(min(1, len(where))), ~same]))


def _scattered(real: Tensor, where: Tensor, marks: Tensor) -> Tensor:
    starts = torch.zeros_like(real).flatten()
    starts[where] = marks
    return starts.unflatten(0, real.shape)


def _changes(seq_idx: Tensor, real: Tensor) -> Tensor:
    where, _, same = _pairs(real)
    step = seq_idx.flatten()[where].diff()
    if bool((same & (step < 0)).any()):
        raise ArgumentError(
            "seq_idx: expected numbers of documents that rise along a row, got smaller ones again"
        )
    return _scattered(real, where, torch.cat([same.new_ones(min(1, len(where))), ~same | (step != 0)]))


def _restarts(positions: Tensor, real: Tensor, read: Tensor | None, continued: bool) -> Tensor:
    """Where the positions of real tokens do not go on by one: a document, which begins at the lowest position."""
    where, row, same = _pairs(real)
    values = positions.flatten()[where]
    begins = torch.cat([same.new_ones(min(1, len(where))), ~same | (values.diff() != 1)])
    inside = begins.clone()
    inside[1:] &= same
    inside[:1] = False
    first = begins & ~inside
    if bool(inside.any()) and not continued and bool((values[begins] != values.min()).any()):
        raise ArgumentError(
            "position_ids: expected every document of a packed row to begin at the same position and to rise by "
            f"one, got {_shown(values[begins])} where they do not go on by one"
        )
    if read is not None and bool((values[first] != read[row[first]]).any()):
        raise ArgumentError(
            f"position_ids begin at {_shown(values[first])}, but the state has read "
            f"{_shown(read[row[first]])} tokens: expected them to go on from there"
        )
    return _scattered(real, where, begins)


def _check_inside(restarts: Tensor, starts: Tensor) -> None:
    if bool((restarts & ~starts).any()):
        raise ArgumentError("position_ids do not go on by one inside a document of cu_seqlens")


def _agreed(marks: dict[str, Tensor], real: Tensor) -> Tensor:
    if not marks:
        return _first_of_row(real)
    for (name, one), (other, two) in itertools.pairwise(marks.items()):
        if not torch.equal(one, two):
            raise ArgumentError(
                f"{name} and {other} contradict each other: documents begin at {_places(one)} by one and at "
                f"{_places(two)} by the other"
            )
    return next(iter(marks.values()))


def _lengths(starts: Tensor, real: Tensor) -> Tensor:
    marks = starts[real]
    firsts = marks.nonzero().flatten()
    return torch.cat([firsts, firsts.new_tensor([len(marks)])]).diff()


def _check_longest(given: Described, longest: int) -> None:
    for name in ("max_length_q", "max_length_k"):
        value = getattr(given, name)
        if value is not None and int(value) < longest:
            raise ArgumentError(f"{name} is {int(value)}, but a document has {longest} tokens")


def _shown(values: Tensor, limit: int = 8) -> str:
    shown = ", ".join(str(v) for v in values[:limit].tolist())
    return shown + (", …" if len(values) > limit else "")


def _places(starts: Tensor) -> list[list[int]]:
    return starts.nonzero().tolist()[:8]
