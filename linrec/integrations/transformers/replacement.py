"""What is replaced: a function of a modelling file, or a method of a mixer, and what computes it in linrec."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from linrec.folder import modules_in


@dataclass(frozen=True)
class Replacement:
    """One function of transformers, under the names it has in modelling files, and what computes it in linrec.

    ``signatures``: the names of its parameters (without ``**kwargs``), one tuple for each version that is known; a
    function with any other is left alone. ``function`` gets the :class:`~linrec.integrations.transformers.calls.Mixing`
    that it is called in, then what the call passes (a method's ``self`` first); it returns what the original would, or
    NotImplemented to leave this call to the original. ``rule`` and ``algorithm`` are for the report. ``owner``: the
    class whose method it is, by name; None for functions of modelling files. ``beside``: it mixes no tokens, so it is
    replaced only beside others in one class.
    """

    names: tuple[str, ...]
    signatures: tuple[tuple[str, ...], ...]
    function: Callable[..., Any]
    rule: str
    algorithm: str
    owner: str | None = None
    beside: bool = False


@dataclass(frozen=True)
class Place:
    """Where a replacement belongs: an attribute of a modelling file, or of a class (``holder``)."""

    holder: Any
    name: str
    replacement: Replacement

    @property
    def title(self) -> str:
        """What it is called: with its class, if it is a method."""
        return self.name if self.replacement.owner is None else f"{self.replacement.owner}.{self.name}"

    @property
    def problem(self) -> str | None:
        """Why it is left alone, if so."""
        function = getattr(self.holder, self.name, None)
        if function is None:
            return f"{self.title} is gone"
        parameters = parameters_of(function)
        if parameters in self.replacement.signatures:
            return None
        return f"{self.title}({', '.join(parameters)}) is not a signature that linrec knows"


@cache
def replacements() -> tuple[Replacement, ...]:
    """All of them: what the files of the folder ``families`` name in their REPLACEMENTS."""
    files = modules_in("linrec.integrations.transformers.families")
    return tuple(replacement for file in files for replacement in file.REPLACEMENTS)


def places(kind: Any) -> tuple[Place, ...]:
    """What linrec could replace in modules of this class."""
    return _places(kind)


@cache
def _places(kind: Any) -> tuple[Place, ...]:
    found = (*_functions(kind), *_methods(kind))
    return () if all(place.replacement.beside for place in found) else found


def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of parameters, without ``**kwargs``."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)


def _functions(kind: type[nn.Module]) -> Iterator[Place]:
    """Functions that the class's own methods call by a global name of the file that defines it."""
    known = {name: r for r in replacements() if r.owner is None for name in r.names}
    for owner in kind.__mro__:
        if owner is nn.Module:
            return
        holder = sys.modules.get(owner.__module__)
        used = {name for method in vars(owner).values() for name in _global_names(method)}
        for name in sorted(used & known.keys()):
            if callable(getattr(holder, name, None)):
                yield Place(holder, name, known[name])


def _global_names(method: Any) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
    return () if code is None else code.co_names


def _methods(kind: type[nn.Module]) -> Iterator[Place]:
    for replacement in replacements():
        for owner in kind.__mro__:
            if owner.__name__ == replacement.owner:
                yield from (
                    Place(owner, name, replacement) for name in replacement.names if name in vars(owner)
                )
