"""Recurrent states as trees: nested (named) tuples whose leaves are tensors, plain numbers or None.

Every layer and model of the kit takes its state as an argument and returns the next one; nothing is
kept on a module. A state is never modified in place unless its owner gives it away
(:func:`linrec.donation.donation`), so holding on to one *is* a fork.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

State = Any
_exportable: set[type] = set()


def export_names() -> None:
    """Give every NamedTuple of this package defined so far a name under which ``torch.export.save`` writes it.

    A program that takes or returns a state could not be saved otherwise.
    """
    for kind in tuple.__subclasses__():
        if kind not in _exportable and hasattr(kind, "_fields") and kind.__module__.startswith("linrec."):
            _exportable.add(kind)
            pytree._register_namedtuple(kind, serialized_type_name=f"{kind.__module__}.{kind.__qualname__}")


def map_tensors(fn: Callable[[Tensor], Any], state: State) -> State:
    """The same tree with ``fn`` applied to every tensor."""
    if isinstance(state, Tensor):
        return fn(state)
    if isinstance(state, tuple):
        children = [map_tensors(fn, child) for child in state]
        return type(state)(*children) if hasattr(state, "_fields") else tuple(children)
    return state


def all_tensors(holds: Callable[[Tensor], bool], state: State) -> bool:
    """Whether something holds of every tensor; without paths, because decoding asks this of every token."""
    if isinstance(state, tuple):
        return all(all_tensors(holds, child) for child in state)
    return not isinstance(state, Tensor) or holds(state)


def named_tensors(state: State, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield ``(path, tensor)`` for every tensor; a path is dot-separated, e.g. ``layers.0.conv``."""
    if isinstance(state, Tensor):
        yield prefix, state
    elif isinstance(state, tuple):
        names = getattr(state, "_fields", range(len(state)))
        for name, child in zip(names, state, strict=True):
            yield from named_tensors(child, f"{prefix}.{name}" if prefix else str(name))


def replace_tensors(state: State, values: dict[str, Tensor], prefix: str = "") -> State:
    """The same tree with each tensor replaced by ``values[path]`` (paths as in :func:`named_tensors`)."""
    paths = iter([path for path, _ in named_tensors(state, prefix)])
    return map_tensors(lambda _: values[next(paths)], state)


def state_bytes(state: State) -> int:
    """Bytes held by the state's tensors."""
    return sum(t.numel() * t.element_size() for _, t in named_tensors(state))


def own_storage(tensor: Tensor) -> Tensor:
    """tensor ``[...]``, copied where it is a view: a state must not keep the activations of a whole chunk alive."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def detach(state: State) -> State:
    """The state cut from the autograd graph."""
    return map_tensors(torch.Tensor.detach, state)


def select_rows(state: State, rows: Tensor) -> State:
    """Batch rows of a state, reordered or repeated: row i of the result is row ``rows[i]``."""
    return map_tensors(lambda t: t.index_select(0, rows.to(t.device)), state)


def stack_rows(states: Sequence[State]) -> State:
    """The rows of several states in one; what grows with the tokens is padded with zeros to the longest."""
    if len(states) == 1:
        return states[0]
    columns = [dict(named_tensors(state)) for state in states]
    stacked = {}
    for path in columns[0]:
        parts = [column[path] for column in columns]
        if parts[0].dim() > 1:
            longest = max(part.shape[1] for part in parts)
            parts = [_pad_second(part, longest) for part in parts]
        stacked[path] = torch.cat(parts)
    return replace_tensors(states[0], stacked)


def _pad_second(x: Tensor, size: int) -> Tensor:
    if x.shape[1] == size:
        return x
    return torch.cat([x, x.new_zeros(x.shape[0], size - x.shape[1], *x.shape[2:])], dim=1)
