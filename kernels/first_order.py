"""The operators that compute gradients have none themselves: they say so, and what has."""

from __future__ import annotations

from typing import Any

from linrec.errors import BackendError


def first_order(operator: Any) -> None:
    """BackendError where a gradient that the operator computed is differentiated."""
    operator.register_autograd(_raise)


def _raise(ctx: Any, *grads: Any) -> None:
    raise BackendError(
        "the Triton kernels have first derivatives only; take backend='torch' for a gradient of a gradient"
    )
