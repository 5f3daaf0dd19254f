"""Which backend runs a call, and why Triton cannot where it cannot."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from linrec.engines.numerics.checks import transformed
from linrec.errors import BackendError
from linrec.rule import Call

NOT_INSTALLED = "Triton is not installed; use backend='torch' or 'auto', or install linrec[kernels]"


def chosen_backend(call: Call, who: str, *tensors: Tensor, unfit: str | None = None) -> str:
    """ "torch" or "triton"; BackendError where Triton is asked for and cannot run. "auto" is Triton on a GPU.

    ``unfit`` is why an engine's kernels cannot run this call on any device.
    """
    if call.backend == "triton":
        reason = why_not_triton(*tensors) or unfit
        if reason:
            raise BackendError(f"{who}: backend='triton' cannot run: {reason}")
    return "triton" if unfit is None and prefers_triton(call.backend, *tensors) else "torch"


def prefers_triton(backend: str, *tensors: Tensor) -> bool:
    """Whether Triton is asked for, or chosen by "auto" because the tensors are on a GPU and it can run."""
    automatic = backend == "auto" and tensors[0].is_cuda
    return backend == "triton" or (automatic and why_not_triton(*tensors) is None)


def why_not_triton(*tensors: Tensor) -> str | None:
    """The reason, or None. On tensors without data (device "meta") launches can be recorded."""
    device = tensors[0].device
    if device.type not in ("cuda", "meta") and not (device.type == "cpu" and interpreted()):
        return (
            f"the inputs are on {device}, and Triton kernels need a GPU; use backend='torch' or 'auto' "
            "(to try the kernels on a CPU, slowly, start Python with TRITON_INTERPRET=1)"
        )
    if not installed():
        return NOT_INSTALLED
    if any(x.dtype == torch.float64 for x in tensors):
        return "the inputs are float64, and Triton kernels sum in float32; use backend='torch' or 'auto'"
    if transformed(*tensors):
        return "torch.func's transforms and forward-mode derivatives go through backend='torch' only"
    return None


def auto_on(device: str) -> str:
    """What "auto" runs on this kind of device, as ``linrec rules --explain`` prints it."""
    if device.split(":")[0] != "cuda":
        return f"torch (the inputs are on {device}, and Triton kernels need a GPU)"
    return "triton" if installed() else f"torch ({NOT_INSTALLED.split(';')[0]})"


def installed() -> bool:
    """Whether Triton can be imported; it is not imported here."""
    try:
        return importlib.util.find_spec("triton") is not None
    except ModuleNotFoundError:
        return False


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: decided by the environment when Triton is imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
