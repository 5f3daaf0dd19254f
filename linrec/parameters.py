"""The parameters of a rule: names and kinds, read off the function that it decorates, and the values of a call."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Hashable
from typing import Any

import torch

from linrec.arguments import Arg, signature
from linrec.call import Options
from linrec.validation import validating

Casts = list[tuple[str, torch.dtype]]

_OPTIONS = {
    name: inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default="auto" if name == "backend" else None
    )
    for name in Options.__annotations__
}


class Parameters:
    """What a function that lowers arguments says of them: ``tensors`` are those with a shape, by name.

    ``own`` is its signature without the ``**options`` that it declares for type checkers.
    """

    def __init__(self, lower: Callable[..., Any]):
        self.who = lower.__name__
        hints = typing.get_type_hints(lower, include_extras=True)
        self.tensors: dict[str, Arg] = {
            name: meta for name, hint in hints.items() for meta in _annotations(hint) if isinstance(meta, Arg)
        }
        declared = inspect.signature(lower)
        own = [p for p in declared.parameters.values() if p.kind is not p.VAR_KEYWORD]
        self.own = declared.replace(parameters=own)
        plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in own)
        self._positions = tuple(p.name for p in own) if plain else ()
        self._needed = {p.name for p in own if p.default is p.empty}

    def with_options(self, returns: Any) -> inspect.Signature:
        """The signature of a call: the function's own parameters and the options."""
        return self.own.replace(
            parameters=[*self.own.parameters.values(), *_OPTIONS.values()], return_annotation=returns
        )

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, without options; TypeError where they are not those of the function."""
        values = dict(zip(self._positions, args, strict=False))
        if not kwargs and 0 < len(args) == len(self._positions):
            return values
        values.update(kwargs)
        complete = len(values) == len(args) + len(kwargs) and self._needed <= values.keys()
        if complete and values.keys() <= self.own.parameters.keys():
            return values
        try:  # says what is wrong with them
            return dict(self.own.bind(*args, **kwargs).arguments)
        except TypeError as error:
            names = ", ".join((*self.own.parameters, *_OPTIONS))
            raise TypeError(f"{self.who}({names}): {error}") from None

    def key(self, form: str | None, options: dict[str, Any], values: dict[str, Any]) -> Hashable | None:
        """All that binding looks at: what was found for one token holds for the next. None: look again."""
        if validating() or torch.compiler.is_compiling() or options.get("cu_seqlens") is not None:
            return None
        scale, chunk = options.get("scale"), options.get("chunk_size")
        if (scale is None or type(scale) is float) and (chunk is None or type(chunk) is int):
            shapes = signature(self.tensors, values)
            return None if shapes is None else (form, scale, chunk, options.get("backend"), shapes)
        return None

    def token_dtype(self, values: dict[str, Any]) -> torch.dtype:
        """The dtype of the arguments that carry the tokens, which is the output's."""
        return next(values[name].dtype for name, arg in self.tensors.items() if arg.carries_tokens)

    def casts(self, values: dict[str, Any], compute: torch.dtype, as_is: frozenset[str]) -> Casts:
        """Lowering happens in accumulator precision: rounding beta * v to bfloat16 first would cost accuracy.

        What lowering hands on untouched (``as_is``) keeps its dtype: copies of whole sequences in float32 would cost
        memory.
        """
        wide = torch.promote_types(compute, torch.float32)  # gates and parameters never fall below float32
        found = []
        for name, arg in self.tensors.items():
            x, wanted = values.get(name), compute if arg.carries_tokens else wide
            if x is not None and name not in as_is and x.dtype != wanted:
                found.append((name, wanted))
        return found


def options_of(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The options among the keywords of a call, which are taken out of them."""
    if _OPTIONS.keys().isdisjoint(kwargs):
        return {}
    return {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}


def cast(values: dict[str, Any], casts: Casts) -> dict[str, Any]:
    """The values, with those of ``casts`` in their dtypes; in place."""
    for name, dtype in casts:
        values[name] = values[name].to(dtype)
    return values


def _annotations(hint: Any) -> tuple[Any, ...]:
    """Metadata of ``Annotated[...]``, also inside ``Annotated[...] | None``."""
    if hasattr(hint, "__metadata__"):
        return hint.__metadata__
    return tuple(m for part in typing.get_args(hint) for m in _annotations(part))
