"""Which formats there are, and which one a ``config.json`` is written in."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from linrec.errors import UnknownNameError
from linrec.models import formats
from linrec.models.formats.format import Format


@cache
def all_formats() -> dict[str, Format]:
    """Every format by its name: those that the files of this folder call ``FORMATS``."""
    modules = [import_module(f"{formats.__name__}.{m.name}") for m in pkgutil.iter_modules(formats.__path__)]
    return {form.name: form for module in modules for form in getattr(module, "FORMATS", ())}


def format_of(values: Mapping[str, Any]) -> Format | None:
    """The format of a ``config.json``; None where none knows it."""
    return next((form for form in all_formats().values() if form.recognises(values)), None)


def named_format(name: str) -> Format:
    """The format of this name. Raises UnknownNameError."""
    found = all_formats().get(name)
    if found is None:
        raise UnknownNameError(f"format {name!r} does not exist; known: linrec, {', '.join(all_formats())}")
    return found
