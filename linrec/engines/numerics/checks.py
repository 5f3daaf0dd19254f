"""What engines ask of the tensors that a caller hands in."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from linrec.arguments import PLAIN
from linrec.errors import DeviceError, DtypeError, ShapeError
from linrec.state import State, named_tensors, replace_tensors


def transformed(*tensors: Tensor) -> bool:
    """Whether one of torch.func's transforms or forward-mode differentiation is active."""
    if torch._C._are_functorch_transforms_active():
        return True
    forward = forward_ad._current_level >= 0  # no level, no tangents to look for
    return forward and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def differentiated(*tensors: Tensor) -> bool:
    """Whether a result of these tensors has to be a function of them, and not only a value."""
    needed = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return needed or transformed(*tensors)


def only_values(*tensors: Tensor) -> bool:
    """Whether nothing is asked of these plain CPU tensors but the values of a result: no derivative, no trace."""
    if torch.is_grad_enabled():
        return False
    for x in tensors:
        if type(x) not in PLAIN or not x.is_cpu:
            return False
    return (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and not transformed(*tensors)
    )


def readable(x: Tensor) -> bool:
    """Whether values of ``x [...]`` can decide what is computed: not on "meta", nor while a graph is traced."""
    return not (x.is_meta or torch.compiler.is_compiling() or isinstance(x, FakeTensor))


def is_tensor_of(
    x: State, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> TypeGuard[Tensor]:
    """Whether a state is this one tensor."""
    return isinstance(x, Tensor) and x.dtype is dtype and x.shape == shape and x.device == device


def _alike(state: State, empty: State) -> bool:
    """Whether there is nothing to convert or to object to: what decoding finds at every token."""
    if isinstance(empty, Tensor):
        return is_tensor_of(state, empty.shape, empty.dtype, empty.device)
    if type(state) is not type(empty):
        return False
    return not isinstance(empty, tuple) or (len(state) == len(empty) and all(map(_alike, state, empty)))


def checked_state(state: State, empty: State, who: str) -> State:
    """The state in the dtypes of ``empty``; typed errors for another kind, shape, type or device than that has."""
    if _alike(state, empty):
        return state
    kind = Tensor if isinstance(empty, Tensor) else type(empty)
    if not isinstance(state, kind):
        wanted = f"a tensor {list(empty.shape)}" if isinstance(empty, Tensor) else f"a {kind.__name__}"
        raise DtypeError(f"{who}: state must be {wanted}, got {type(state).__name__}")
    got, wanted_tensors = list(named_tensors(state)), list(named_tensors(empty))
    if [path for path, _ in got] != [path for path, _ in wanted_tensors]:
        names = (", ".join(path or "state" for path, _ in tensors) for tensors in (wanted_tensors, got))
        raise DtypeError("{}: the state's tensors must be {}, got {}".format(who, *names))
    values = {}
    for (path, x), (_, want) in zip(got, wanted_tensors, strict=True):
        name = f"state.{path}" if path else "state"
        if x.shape != want.shape:
            raise ShapeError(f"{who}: {name} must be {list(want.shape)}, got {list(x.shape)}")
        if x.is_floating_point() != want.is_floating_point():
            number = "floating point" if want.is_floating_point() else "integer"
            raise DtypeError(f"{who}: {name} must be {number}, got {x.dtype}")
        if x.device != want.device:
            raise DeviceError(f"{who}: {name} is on {x.device}, but the inputs are on {want.device}")
        values[path] = x.to(want.dtype)
    return replace_tensors(state, values)
