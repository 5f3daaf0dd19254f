"""Arguments of rules: their shapes, domains and checks, from one annotation each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from linrec.errors import DeviceError, DtypeError, RangeError, ShapeError

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# What the values of an argument mean; decides the check under validation and how examples are drawn.
DOMAINS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "normal": ("finite", torch.isfinite),
    "unit": ("finite", torch.isfinite),
    "log_decay": ("a finite natural-log decay, <= 0", lambda x: torch.isfinite(x) & (x <= 0)),
    "weak_decay": ("a finite natural-log decay, <= 0", lambda x: torch.isfinite(x) & (x <= 0)),
    "strength": ("finite", torch.isfinite),
    "logit": ("finite", torch.isfinite),
    "rate": ("finite", torch.isfinite),
    "positive": ("finite and > 0", lambda x: torch.isfinite(x) & (x > 0)),
    "negative": ("finite and < 0", lambda x: torch.isfinite(x) & (x < 0)),
}
PLAIN = (Tensor, torch.nn.Parameter)
MAY_BE_EMPTY = ("B", "T")  # no sequences, or no tokens; every width and number of heads is at least one
TOKEN_DRAWS = ("normal", "unit")


class Arg:
    """Shape (alternatives of space-separated dimension names) and domain of one tensor argument.

    Arguments drawn as ``normal`` or ``unit`` with a time axis carry the tokens and must share one dtype;
    the others are gates or parameters and may have any floating dtype.
    """

    def __init__(self, *shapes: str, draw: str = "normal"):
        self.shapes = tuple(tuple(s.split()) for s in shapes)
        self.draw = draw
        self.carries_tokens = draw in TOKEN_DRAWS and "T" in self.shapes[0]

    def shape_for(self, rank: int) -> tuple[str, ...] | None:
        """The alternative with so many dimensions; None where there is none."""
        return next((s for s in self.shapes if len(s) == rank), None)

    def __repr__(self) -> str:
        return " or ".join(f"[{', '.join(s)}]" for s in self.shapes)


def signature(args: Mapping[str, Arg], values: Mapping[str, Any]) -> Hashable | None:
    """All that :func:`check_arguments` looks at but values, or None where that is not plain numbers: in a traced graph
    sizes may be symbols, and what is remembered there would be part of the graph."""
    if torch.compiler.is_compiling():
        return None
    key: list[Hashable] = []
    for name, x in values.items():
        if type(x) in PLAIN:
            key += (name, x.shape, x.dtype, x.device)
        elif x is not None and name in args:
            return None
    return tuple(key)


def check_arguments(
    args: Mapping[str, Arg], values: Mapping[str, Any], who: str, deep: bool
) -> dict[str, int]:
    """Check ranks, dimensions, dtypes and devices (and values if ``deep``); return the dimensions.

    Raises ShapeError, DtypeError, DeviceError or RangeError.
    """
    dims: dict[str, int] = {}
    tokens: tuple[str, Tensor] | None = None
    first: tuple[str, Tensor] | None = None
    for name, arg in args.items():
        x = values.get(name)
        if x is None:
            continue
        _check_tensor(name, x, who)
        _check_shape(name, arg, x, dims, who)
        _check_groups(dims, who)
        first = first or (name, x)
        if x.device != first[1].device:
            raise DeviceError(f"{who}: {name} is on {x.device}, but {first[0]} is on {first[1].device}")
        if arg.carries_tokens:
            tokens = tokens or (name, x)
            if x.dtype != tokens[1].dtype:
                raise DtypeError(f"{who}: {name} is {x.dtype}, but {tokens[0]} is {tokens[1].dtype}")
        if deep:
            meaning, holds = DOMAINS[arg.draw]
            if not bool(holds(x).all()):
                worst = x.detach()[~holds(x)].flatten()[0].item()
                raise RangeError(f"{who}: {name} must be {meaning}; it contains {worst}")
    return dims


def _check_tensor(name: str, x: Any, who: str) -> None:
    if not isinstance(x, Tensor):
        raise DtypeError(f"{who}: {name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise DtypeError(f"{who}: {name} must be float64, float32, bfloat16 or float16, got {x.dtype}")


def _check_shape(name: str, arg: Arg, x: Tensor, dims: dict[str, int], who: str) -> None:
    shape = arg.shape_for(x.dim())
    if shape is None:
        raise ShapeError(f"{who}: {name} must be {arg}, got {list(x.shape)}")
    for dim, size in zip(shape, x.shape, strict=True):
        if dims.setdefault(dim, size) != size:
            expected = ", ".join(f"{d}={dims[d]}" if d in dims else d for d in shape)
            raise ShapeError(f"{who}: {name} must be [{expected}], got {list(x.shape)}")
        if size == 0 and dim not in MAY_BE_EMPTY:
            raise ShapeError(f"{who}: {name} must be {arg} with {dim} > 0, got {list(x.shape)}")


def _check_groups(dims: dict[str, int], who: str) -> None:
    for many, few in (("HV", "H"), ("HQ", "H"), ("HV", "G")):
        if many in dims and few in dims and (dims[few] == 0 or dims[many] % dims[few]):
            raise ShapeError(
                f"{who}: {many} must be a multiple of {few}, got {many}={dims[many]}, {few}={dims[few]}"
            )


def gain_time(args: Mapping[str, Arg], values: dict[str, Any], who: str) -> bool:
    """Give one-token tensors a time axis, in place in ``values``; True if they had one already."""
    leading = next(name for name, arg in args.items() if arg.carries_tokens)
    x = values.get(leading)
    if not isinstance(x, Tensor) or x.dim() == len(args[leading].shapes[0]):
        return True
    for name, arg in args.items():
        x = values.get(name)
        if not isinstance(x, Tensor):
            continue
        for shape in arg.shapes:
            if "T" in shape and x.dim() == len(shape) - 1:
                values[name] = x.unsqueeze(shape.index("T"))
                break
    return False


def drop_time(o: Tensor) -> Tensor:
    """``[B, 1, ...] -> [B, ...]``."""
    return o.squeeze(1)
