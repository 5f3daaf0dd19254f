"""Building a model for weights that are at hand: nothing is drawn at random, and nothing larger than them is made.

Sizes that come with a file may be anything. What a constructor allocates is counted before it is, and a model that
would take clearly more than its weights is refused. Memory that is only reserved costs nothing: parameters stay
unwritten until the weights take their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from linrec.errors import CheckpointError
from linrec.models.config import Config

DRAWN = {"normal_", "uniform_", "kaiming_uniform_"}  # of tensors and of torch.nn.init alike
# What gives more elements than it is given, by name; only these are counted.
MADE = {"empty", "zeros", "ones", "full", "rand", "randn", "arange", "linspace", "eye", "repeat", "outer"}
PRODUCTS = {"matmul", "mm", "__matmul__", "__rmatmul__"}
SMALL = 2**24  # elements that are no matter: constants, and what is computed on the way to a parameter


Model = TypeVar("Model", bound=nn.Module)


def build(kind: Callable[[Config], Model], config: Config, elements: int) -> Model:
    """The model ``kind`` makes of ``config``, its random parameters unset, from ``elements`` weights.

    Raises CheckpointError where it would take far more memory than these, or no model can be built.
    """
    try:
        with _Counted(4 * elements + SMALL):
            return kind(config)
    except CheckpointError:
        raise
    # A layer may stumble over sizes that make no sense in any way.
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"no model can be built: {type(error).__name__}: {said}") from error


class _Counted(TorchFunctionMode):
    """Random numbers are left out; what is made is counted first, up to a number of elements."""

    def __init__(self, limit: int):
        super().__init__()
        self.left = self.limit = limit

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func.__name__, kwargs or {}
        if name in DRAWN:
            return args[0] if args else kwargs["tensor"]
        if name in MADE or name in PRODUCTS:
            self.left -= _elements(name, (*args, *kwargs.values()))
            if self.left < 0:
                raise CheckpointError(
                    f"the model would be larger than its weights, over {self.limit:,} elements"
                )
        return (torch.empty if name in ("rand", "randn") else func)(*args, **kwargs)


def _elements(name: str, values: tuple[Any, ...]) -> int:
    """Of the result; where a number is no size, at least these."""
    if name in PRODUCTS:
        first, second = (value for value in values if isinstance(value, Tensor))
        return first.numel() * second.numel() // max(1, *first.shape[-1:]) ** 2
    factors = list(_factors(values[:1] if name == "full" else values))
    if name in ("arange", "linspace"):
        return max(factors, default=0)
    return math.prod(factors) ** (2 if name == "eye" else 1)


def _factors(values: Any) -> Iterator[int]:
    """Sizes, and the elements of what goes in."""
    for value in values:
        if isinstance(value, Tensor):
            yield value.numel()
        elif isinstance(value, tuple | list):
            yield from _factors(value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield math.ceil(abs(value))
