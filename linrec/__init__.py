"""linrec: linear attention and recurrent sequence models for PyTorch.

A mechanism is one equation in one file; its forms, its streaming state, its tests and its row in the support
table are derived from that file.

    from linrec import layers, models, rules

    rules.gated_delta_net(q, k, v, g, beta)           # the mathematics: functions of tensors
    layers.LAYERS["gated_delta_net"](d_model=512)     # nn.Modules around a rule
    models.LanguageModel(models.Config(...))          # a language model with any pattern of layers

Subpackages, :class:`~linrec.stream.Session` and :func:`~linrec.engines.numerics.products.wide_products` load when
they are first used, so that ``import linrec`` is free.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linrec import evals as evals
    from linrec import layers as layers
    from linrec import models as models
    from linrec import rules as rules
    from linrec.engines.numerics.products import wide_products as wide_products
    from linrec.stream import Session as Session

__version__ = "0.1.0"


_NAMES = {"Session": "linrec.stream", "wide_products": "linrec.engines.numerics.products"}
_SUBPACKAGES = ("engines", "rules", "layers", "models", "evals", "kernels")


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"linrec.{name}")
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'linrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_SUBPACKAGES, *_NAMES, "__version__"])
