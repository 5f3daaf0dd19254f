"""The names that the files of a package give to it: a file registers by being there."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from linrec.errors import DefinitionError


def names_in(package: str, belongs: Callable[[Any], bool]) -> dict[str, str]:
    """Import every file in a package's folder; the names that they give to the package, and the module that has each.

    A file gives what its ``__all__`` names; without one, whatever it defines itself that ``belongs``, unless its name
    begins with an underscore. DefinitionError where two files give the same name.
    """
    found: dict[str, str] = {}
    for module in modules_in(package):
        for name in _names(module, belongs):
            other = found.setdefault(name, module.__name__)
            if other != module.__name__:
                raise DefinitionError(f"{package}: {name} is defined in {other} and in {module.__name__}")
    return dict(sorted(found.items()))


def modules_in(package: str) -> list[ModuleType]:
    """The files in a package's folder, imported, in the order of the alphabet."""
    folder = import_module(package).__path__
    stems = sorted(m.name for m in pkgutil.iter_modules(folder) if m.name.isidentifier())
    return [import_module(f"{package}.{stem}") for stem in stems]


def _names(module: ModuleType, belongs: Callable[[Any], bool]) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and belongs(value) and value.__module__ == module.__name__
    ]
