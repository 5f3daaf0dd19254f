"""Correspondences between the weights of two layouts: names, and where the shapes differ how one becomes the other.

All of them only move numbers, so that there and back is the identity, bit for bit; on ``meta`` tensors they give the
shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from linrec.errors import CheckpointError

Moved = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class Weight(NamedTuple):
    """``theirs`` become ``ours`` by ``into``, and ours theirs by ``back``."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    into: Moved
    back: Moved


def same(theirs: str, ours: str) -> Weight:
    """One tensor under two names."""
    return Weight((theirs,), (ours,), _as_is, _as_is)


def reshaped(theirs: str, ours: str, there: Sequence[int], here: Sequence[int]) -> Weight:
    """The same numbers in the same order, of shape ``there`` in their layout and ``here`` in ours."""
    return Weight((theirs,), (ours,), lambda x: [x[0].reshape(*here)], lambda x: [x[0].reshape(*there)])


def split(theirs: str, ours: Sequence[str], sizes: Sequence[int], dim: int = 0) -> Weight:
    """Their tensor holds several of ours one after the other."""
    sizes = list(sizes)
    return Weight(
        (theirs,),
        tuple(ours),
        lambda x: [part.contiguous() for part in x[0].split(sizes, dim)],
        lambda x: [torch.cat(list(x), dim)],
    )


def joined(theirs: Sequence[str], ours: str, sizes: Sequence[int], dim: int = 0) -> Weight:
    """Ours holds several of theirs one after the other."""
    there = split(ours, theirs, sizes, dim)
    return Weight(there.ours, there.theirs, there.back, there.into)


def ordered(weight: Weight, order: Tensor, dim: int = 0) -> Weight:
    """The same, where their single tensor has another order of rows: our row i is their row ``order[i]``."""
    inverse = torch.argsort(order)
    return weight._replace(
        into=lambda x: weight.into([x[0].index_select(dim, order.to(x[0].device))]),
        back=lambda x: [weight.back(x)[0].index_select(dim, inverse.to(x[0].device))],
    )


def into_ours(weights: Iterable[Weight], theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our tensors by name. Raises CheckpointError, with names, for what is missing, left over or does not fit."""
    return _moved([(w.theirs, w.ours, w.into) for w in weights], theirs, where)


def into_theirs(weights: Iterable[Weight], ours: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Their tensors by name; raises as :func:`into_ours`."""
    return _moved([(w.ours, w.theirs, w.back) for w in weights], ours, where)


def _moved(
    ways: Sequence[tuple[tuple[str, ...], tuple[str, ...], Moved]], given: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    wanted = [name for sources, _, _ in ways for name in sources]
    missing, extra = sorted(set(wanted) - given.keys()), sorted(given.keys() - set(wanted))
    if missing or extra:
        raise CheckpointError(
            f"{where}: the weights are not those of the configuration: {len(missing)} missing {missing[:3]}, "
            f"{len(extra)} unexpected {extra[:3]}"
        )
    found: dict[str, Tensor] = {}
    for sources, targets, move in ways:
        try:
            found.update(zip(targets, move([given[name] for name in sources]), strict=True))
        except (RuntimeError, ValueError, IndexError) as error:
            shapes = ", ".join(f"{name} {list(given[name].shape)}" for name in sources)
            raise CheckpointError(
                f"{where}: sizes do not fit the configuration: {shapes} ({error})"
            ) from error
    return found


def _as_is(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return tensors
