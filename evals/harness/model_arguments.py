"""Arguments of the lm-eval model: each means something, or is refused by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from linrec.errors import ConfigError

AUTO = 8  # rows side by side where nobody says how many


def refuse(who: str, others: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """ConfigError for arguments that ``function`` would otherwise swallow, with its own beside them."""
    if not others:
        return
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind in kinds and p.name != "self"]
    near = difflib.get_close_matches(next(iter(others)), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
    raise ConfigError(f"{who} has no argument {', '.join(map(repr, others))}; {hint}")


def at_least(name: str, value: Any, least: int) -> int:
    """The whole number, or ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}: expected a whole number >= {least}, got {value!r}")
    return value


def batch_rows(batch_size: int | str | None, max_batch_size: int | None) -> int:
    """Rows side by side; "auto" and None leave the number to us, ``max_batch_size`` bounds it."""
    if isinstance(batch_size, str) and batch_size.isdecimal():
        batch_size = int(batch_size)
    rows = AUTO if batch_size in (None, "auto") else at_least("batch_size", batch_size, 1)
    return rows if max_batch_size is None else min(rows, at_least("max_batch_size", max_batch_size, 1))


def place(device: str | torch.device | None) -> str | torch.device | None:
    """The device, or the CPU where lm-eval's command line, which cannot leave it out, names a GPU that is not here."""
    absent = str(device).startswith("cuda") and not torch.cuda.is_available()
    return "cpu" if absent else device


def precision(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype of this name; None and "auto" keep the checkpoint's."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if dtype in (None, "auto"):
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype: expected 'auto', 'float32', 'bfloat16', ... or None, got {dtype!r}")
    return found
