"""Host code run on ``device="meta"`` tensors: launches are recorded instead of run, and torch operations as well.

A recorded launch holds the grid and the arguments as the host code gave them. Triton's own specialisation is made
from these (which integers are 1, which pointers and integers are multiples of 16), so what is compiled from a launch
is what would run: without the divisibility of pointers a compiled kernel loads two bytes at a time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from linrec.evals.kernels.targets import Gpu


@dataclass
class Launch:
    """One kernel launch as host code asked for it."""

    kernel: Any  # triton's JITFunction, or InterpretedFunction in an interpreter process
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grid: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The kernel's."""
        return self.kernel.fn.__name__

    @property
    def programs(self) -> int:
        """How many run."""
        return math.prod(self.grid)

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """The kernel's own arguments by name."""
        names = set(self.kernel.arg_names)
        own = {k: v for k, v in self.kwargs.items() if k in names}
        bound = inspect.signature(self.kernel.fn).bind(*self.args, **own)
        bound.apply_defaults()
        return dict(bound.arguments)

    @property
    def config(self) -> str:
        """Tile sizes, warps and stages in short: constants that are whole numbers larger than one."""
        options = {k: v for k, v in self.kwargs.items() if k in ("num_warps", "num_stages")}
        tiles = {
            k: v
            for k, v in self.arguments.items()
            if isinstance(v, int)
            and not isinstance(v, bool)
            and k.isupper()
            and k not in ("T", "B", "H", "HV", "HA", "HB", "K", "V", "SEQUENCES")
        }
        return " ".join(f"{k.removeprefix('num_')}={v}" for k, v in {**tiles, **options}.items())

    def source(self, gpu: Gpu) -> tuple[Any, dict[str, Any]]:
        """(source, options) that Triton would compile on this GPU."""
        from triton.compiler import ASTSource
        from triton.compiler.compiler import make_backend
        from triton.runtime.jit import create_function_from_signature

        backend = make_backend(gpu.target)
        binder = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, options = binder(*self.args, **self.kwargs)
        packed = self.kernel._pack_args(backend, self.kwargs, bound, specialization, options)
        options, signature, constants, attributes = packed
        return ASTSource(self.kernel, signature, constants, attributes), options.__dict__

    def key(self, gpu: Gpu) -> str:
        """Hash of everything that decides the machine code: equal keys, equal code."""
        import triton

        source, options = self.source(gpu)
        settings = sorted((k, str(v)) for k, v in options.items() if k not in ("extern_libs", "debug"))
        text = f"{triton.__version__} {gpu.name} {source.hash()} {settings}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class TorchOp:
    """A torch operation of the host code, other than views and plain allocations: it is a kernel as well."""

    name: str
    read: int
    written: int


@dataclass
class Recording:
    """What host code did, in order of its kinds."""

    launches: list[Launch] = field(default_factory=list)
    torch_ops: list[TorchOp] = field(default_factory=list)


@contextlib.contextmanager
def recording() -> Iterator[Recording]:
    """Record the launches and torch operations of the block; nothing runs, so tensors should be on ``meta``."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    found = Recording()

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        launch = Launch(self, args, kwargs)
        shape = grid(launch.arguments) if callable(grid) else grid
        launch.grid = tuple(int(n) for n in shape)
        found.launches.append(launch)

    classes: tuple[Any, ...] = (JITFunction, InterpretedFunction)
    before = [kind.run for kind in classes]
    for kind in classes:
        kind.run = run
    try:
        with _CountingMode(found.torch_ops):
            yield found
    finally:
        for kind, method in zip(classes, before, strict=True):
            kind.run = method


class _CountingMode(TorchDispatchMode):
    ALLOCATIONS = (
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "detach",
        "alias",
    )

    def __init__(self, found: list[TorchOp]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "linrec":
            # An operator of the kit: its own code, instead of the shapes that torch's fake kernel gives on meta.
            with self:
                return _host_code(func)(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in self.ALLOCATIONS and "unsafe_view" not in name:
            outputs = [x for x in _leaves(result) if isinstance(x, Tensor)]
            inputs = [x for x in _leaves((args, kwargs)) if isinstance(x, Tensor)]
            # An in-place operation names its output among its inputs; a fill does not read it.
            if name.rstrip("_") in (
                "fill",
                "zero",
                "copy",
                "new_zeros",
                "new_full",
                "zeros_like",
                "full_like",
            ):
                inputs = inputs[1:]
            self.found.append(TorchOp(name, sum(map(size, inputs)), sum(map(size, outputs))))
        return result


def _host_code(func: Any) -> Any:
    from torch._library.custom_ops import OPDEFS

    return OPDEFS[f"{func.namespace}::{func.overloadpacket.__name__}"]._init_fn


def _leaves(tree: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(tree)


def size(x: Tensor) -> int:
    """Bytes that reading all of x ``[...]`` moves: an expanded dimension counts once."""
    elements = math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride or n == 0)
    return elements * x.element_size()
