"""Products of a whole model as wide as they can be without a loss of digits, forward and backward.

See :func:`linrec.engines.numerics.products.wide_products`. The forward pass is a model's call on several tokens; the
backward pass begins where a gradient of its output arrives, and ends when autograd says so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from linrec.engines.numerics.products import wide_products


class _Open(threading.local):
    """The section of this thread's backward pass."""

    def __init__(self) -> None:
        self.backward: AbstractContextManager[None] | None = None


_open = _Open()


def begin_forward(module: nn.Module, given: Mapping[str, Any]) -> AbstractContextManager[None] | None:
    """A section for a call on several tokens on a CPU, entered; None for other calls."""
    end_backward()  # of a pass that failed
    ids = given.get("input_ids")
    tokens = given.get("inputs_embeds") if ids is None else ids
    if not isinstance(tokens, Tensor) or not tokens.is_cpu or tokens.dim() < 2:
        return None
    if tokens.shape[0] * tokens.shape[1] == 1 or next(module.parameters()).dtype is not torch.float32:
        return None
    section = wide_products()
    section.__enter__()
    return section


def end_forward(section: AbstractContextManager[None], output: Any) -> None:
    """Leave it; a backward pass through the output gets one of its own."""
    section.__exit__(None, None, None)
    if torch.is_grad_enabled():
        for x in _tensors(output):
            if x.requires_grad and not x.is_leaf:
                x.register_hook(_begin_backward)


def _begin_backward(gradient: Tensor) -> None:
    if _open.backward is None:
        section = wide_products()
        section.__enter__()
        _open.backward = section
        torch.autograd.Variable._execution_engine.queue_callback(end_backward)


def end_backward() -> None:
    """Leave the section of this thread's backward pass, if there is one."""
    section, _open.backward = _open.backward, None
    if section is not None:
        section.__exit__(None, None, None)


def _tensors(output: Any) -> Iterator[Tensor]:
    parts = (
        output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else [output]
    )
    return (part for part in parts if isinstance(part, Tensor))
