"""The architecture that launch configurations are chosen for: the GPU's own, or one that a caller pretends to have."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

DEFAULT = "sm_90"  # where there is no GPU: the interpreter, and tensors on meta
_pretended: str | None = None
_one_at_a_time = threading.RLock()


def architecture(device: torch.device) -> str:
    """``sm_80``, ``sm_90``, ``gfx942``, ...: as the compiler calls it."""
    if _pretended is not None:
        return _pretended
    if device.type != "cuda":
        return DEFAULT
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@contextlib.contextmanager
def pretend(name: str) -> Iterator[None]:
    """Within the block, configurations are those of this architecture, whatever the device.

    For all threads, because a GPU's backward pass runs on a thread of its own; so blocks of other threads wait.
    """
    global _pretended
    with _one_at_a_time:
        before, _pretended = _pretended, name
        try:
            yield
        finally:
            _pretended = before
