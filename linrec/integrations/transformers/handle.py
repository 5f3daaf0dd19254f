"""The two calls for a built model."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from torch import nn

from linrec.integrations.transformers import patching
from linrec.integrations.transformers.reporting import Row, rows


class Accelerated:
    """A model that runs through linrec until :meth:`restore`, or until the end of a ``with`` block."""

    def __init__(self, model: nn.Module):
        self.model = model

    @property
    def rows(self) -> list[Row]:
        """The table of :func:`~linrec.integrations.transformers.report`."""
        return rows(self.model)

    def restore(self) -> None:
        """The model as it was."""
        patching.restore_modules(self.model)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def accelerate(model: nn.Module) -> Accelerated:
    """Make a built model of transformers run through linrec, in place, whatever wraps it; again changes nothing.

    What linrec does not know is left as it is (:func:`report` says what and why). The model's parameters, configuration
    and class stay; so do its caches' shapes. Calls under ``torch.compile`` keep whole graphs.
    """
    patching.accelerate_modules(model)
    return Accelerated(model)


def restore(model: nn.Module) -> None:
    """Undo :func:`accelerate`; nothing where there is nothing to undo."""
    patching.restore_modules(model)
