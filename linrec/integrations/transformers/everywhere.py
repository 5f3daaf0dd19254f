"""Switching it on for all models that are made afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any

from linrec.integrations.transformers.patching import accelerate_modules

_lock = threading.Lock()
_original: list[Callable[..., Any]] = []  # of PreTrainedModel.post_init, while it is replaced


class Enabled:
    """What :func:`enable` returns: at the end of a ``with`` block of it, :func:`disable` is called."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        disable()


def enable() -> Enabled:
    """Accelerate every model of transformers that is made from now on, until :func:`disable` or the end of the block.

    Models that are made in between stay accelerated.
    """
    from transformers import PreTrainedModel

    with _lock:
        if not _original:
            original = PreTrainedModel.post_init

            @wraps(original)
            def post_init(self: Any, *args: Any, **kwargs: Any) -> None:
                original(self, *args, **kwargs)
                accelerate_modules(self)

            _original.append(original)
            PreTrainedModel.post_init = post_init
    return Enabled()


def disable() -> None:
    """Models that are made from now on are left as they are."""
    from transformers import PreTrainedModel

    with _lock:
        if _original:
            PreTrainedModel.post_init = _original.pop()
