"""The architecture that launch configurations are chosen for: the GPU's own, or one that a caller pretends to have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

DEFAULT = "sm_90"  # where there is no GPU: the interpreter, and tensors on meta
_pretended: str | None = None


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
    """Within the block, configurations are those of this architecture, whatever the device."""
    global _pretended
    before, _pretended = _pretended, name
    try:
        yield
    finally:
        _pretended = before
