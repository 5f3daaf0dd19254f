"""Triton's interpreter, made strict: what a GPU would not do, or not do the same way each time, is an error here.

As it comes, the interpreter keeps bfloat16 as bit patterns and computes on the bits, truncates where a GPU rounds
to nearest even, gives zero where a masked load leaves a lane undefined, reads and writes any address of the
process, and runs the programs of a grid one after another, so that no race ever shows. ``install()`` corrects
bfloat16 products and casts and refuses all other bfloat16 arithmetic (kernels compute in float32 anyway), fills
undefined lanes with NaN, and checks every access: inside a tensor that the kernel was given, and not to what
another program of the same launch writes, or the same program wrote before the last barrier.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle


def install() -> None:
    """Patch the interpreter of this process, for good."""
    _exact_bfloat16()
    _scans_by_slices()
    _checked_memory()


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns of float32 values, to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, nearest).astype(np.uint16)


def _is_bfloat16(x: Any) -> bool:
    return isinstance(x, TensorHandle) and x.dtype.scalar == tl.bfloat16


def _as_float32(x: TensorHandle) -> TensorHandle:
    return TensorHandle(widened(x.data), tl.float32) if _is_bfloat16(x) else x


def _exact_bfloat16() -> None:
    builder: Any = InterpreterBuilder
    cast, convert, dot = builder.cast_impl, builder.create_fp_to_fp, builder.create_dot

    def exact_cast(self: Any, src: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        src = _as_float32(src) if dst_type.scalar != tl.bfloat16 else src
        if dst_type.scalar == tl.bfloat16 and not _is_bfloat16(src):
            return TensorHandle(rounded(src.data.astype(np.float32)), tl.bfloat16)
        if src.dtype.scalar == dst_type.scalar:
            return src
        return cast(self, src, dst_type)

    def exact_convert(self: Any, src: TensorHandle, dst_type: tl.dtype, rounding: Any) -> TensorHandle:
        if _is_bfloat16(src) or dst_type.scalar == tl.bfloat16:
            return exact_cast(self, src, dst_type)
        return convert(self, src, dst_type, rounding)

    def exact_dot(self: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, *rest: Any) -> TensorHandle:
        return dot(self, _as_float32(a), _as_float32(b), d, *rest)

    builder.cast_impl, builder.create_fp_to_fp, builder.create_dot = exact_cast, exact_convert, exact_dot
    for name in ("binary_op", "unary_op", "create_fma", "create_clampf", "create_rsqrt", "create_erf"):
        setattr(builder, name, _refusing_bfloat16(name, getattr(builder, name)))
    apply = interpreter.ReduceScanOpInterface.apply

    def checked_apply(self: Any, inputs: Any) -> Any:
        if any(x.dtype.scalar == tl.bfloat16 for x in (inputs if isinstance(inputs, tuple) else (inputs,))):
            raise TypeError("reduction or scan in bfloat16: cast to float32 first")
        return apply(self, inputs)

    interpreter.ReduceScanOpInterface.apply = checked_apply


def _refusing_bfloat16(name: str, method: Any) -> Any:
    def wrapper(self: Any, *args: Any) -> Any:
        if any(_is_bfloat16(x) for x in args):
            raise TypeError(f"{name} in bfloat16: cast to float32 first")
        return method(self, *args)

    return wrapper


class Region:
    """One tensor argument of the running launch: its addresses, and who touched each element."""

    def __init__(self, tensor: Tensor):
        self.start, self.item = tensor.data_ptr(), tensor.element_size()
        last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        self.elements = last + 1 if tensor.numel() else 0
        self.end = self.start + self.elements * self.item
        self.writer = np.zeros(self.elements, np.int64)
        self.reader = np.zeros(self.elements, np.int64)  # a number of the last reader, or MANY

    MANY = -1


class Memory:
    """The regions of the running launch. Time is counted in epochs: programs, and barriers inside them."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.first = self.now = 1

    def begin(self, arguments: list[Any]) -> None:
        found = {(x.data_ptr(), x.numel()): x for x in arguments if isinstance(x, Tensor)}
        self.regions = [Region(x) for x in found.values()]
        self.first = self.now = 1

    def next_program(self) -> None:
        self.now += 1
        self.first = self.now

    def barrier(self) -> None:
        self.now += 1

    def read(self, addresses: np.ndarray) -> None:
        region, index = self._locate(addresses, "load")
        if region is None:
            return
        writer = region.writer[index]
        if ((writer > 0) & (writer < self.first)).any() or (writer < 0).any():
            raise RuntimeError("race: a program loads what another program of the launch stores")
        if (writer == self.now).any():
            raise RuntimeError("race: a program loads what it stored, with no tl.debug_barrier() between")
        reader = region.reader[index]
        mine = (reader == 0) | (reader >= self.first)
        region.reader[index] = np.where(mine, self.now, Region.MANY)

    def write(self, addresses: np.ndarray, atomic: bool = False) -> None:
        region, index = self._locate(addresses, "store")
        if region is None:
            return
        writer, reader = region.writer[index], region.reader[index]
        others = (writer > 0) & (writer < self.first) | (writer < 0 if not atomic else False)
        if others.any():
            raise RuntimeError("race: two programs of the launch store to one address")
        if ((reader == Region.MANY) | ((reader > 0) & (reader < self.first))).any():
            raise RuntimeError("race: a program stores what another program of the launch loads")
        region.writer[index] = -1 if atomic else self.now

    def touched(self) -> set[tuple[int, str]]:
        """(elements, "read" or "written") of each tensor of the last launch."""
        found = {(int((r.reader != 0).sum()), "read") for r in self.regions}
        found |= {(int((r.writer != 0).sum()), "written") for r in self.regions}
        return {(elements, how) for elements, how in found if elements}

    def _locate(self, addresses: np.ndarray, what: str) -> tuple[Region | None, Any]:
        if addresses.size == 0:
            return None, None
        low, high = int(addresses.min()), int(addresses.max())
        for region in self.regions:
            if region.start <= low and high < region.end:
                return region, (addresses - np.uint64(region.start)) // np.uint64(region.item)
        near = min(self.regions, key=lambda r: abs(r.start - low))
        raise IndexError(
            f"{what} outside every tensor of the launch: elements {(low - near.start) // near.item} to "
            f"{(high - near.start) // near.item} of a tensor with {near.elements}"
        )


MEMORY = Memory()  # of the launch that runs, or ran last


def _checked_memory() -> None:
    _checked_programs()
    builder: Any = InterpreterBuilder
    memory = MEMORY
    load, store, rmw = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    def checked_load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any, **options: Any) -> TensorHandle:
        on = np.broadcast_to(mask.data, ptrs.data.shape)
        memory.read(ptrs.data[on])
        loaded = load(self, ptrs, mask, other, *rest, **options)
        if other is None and not on.all():
            loaded.data = np.where(on, loaded.data, undefined(loaded.data.dtype, loaded.dtype))
        return loaded

    def checked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        memory.write(ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)])
        return store(self, ptrs, value, mask, *rest)

    def checked_rmw(self: Any, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
        if _is_bfloat16(val):
            raise TypeError("atomics in bfloat16 do not run everywhere")
        memory.write(ptr.data[np.broadcast_to(mask.data, ptr.data.shape)], atomic=True)
        return rmw(self, op, ptr, val, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    builder.create_atomic_rmw = checked_rmw
    builder.create_barrier = lambda self: memory.barrier()


def _checked_programs() -> None:
    """The memory knows the tensors of a launch, and which of its programs is running."""
    builder: Any = InterpreterBuilder
    executor: Any = GridExecutor
    to_host, call, set_grid = executor._init_args_hst, executor.__call__, builder.set_grid_idx

    def begin(self: Any, args: Any, kwargs: Any) -> Any:
        host, host_kwargs = to_host(self, args, kwargs)
        MEMORY.begin([*host, *host_kwargs.values()])
        return host, host_kwargs

    def quiet_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):  # as on a GPU: infinities and NaN are values
            return call(self, *args, **kwargs)

    def next_program(self: Any, x: int, y: int, z: int) -> None:
        MEMORY.next_program()
        set_grid(self, x, y, z)

    executor._init_args_hst, executor.__call__, builder.set_grid_idx = begin, quiet_call, next_program


def undefined(kind: np.dtype, dtype: tl.dtype) -> Any:
    """What stands in a lane that a load does not define."""
    if dtype.scalar == tl.bfloat16:
        return np.uint16(0x7FC0)
    return kind.type(np.nan) if kind.kind == "f" else kind.type(1) if kind.kind == "b" else np.iinfo(kind).max


def _scans_by_slices() -> None:
    """A scan joins whole slices, not single elements, which takes a hundredth of the time."""
    slow = interpreter.ScanOps.generic_scan

    def generic_scan(self: Any, inputs: Any) -> Any:
        if inputs[0].handle.data.ndim < 2:
            return slow(self, inputs)
        along = [np.moveaxis(x.handle.data, self.axis, 0) for x in inputs]

        def at(values: list[np.ndarray]) -> list[Any]:
            return [self.to_tensor(v, x.dtype) for v, x in zip(values, inputs, strict=True)]

        rows = [[x[0] for x in along]]
        for i in range(1, len(along[0])):
            joined = self.combine_fn.fn(*at(rows[-1]), *at([x[i] for x in along]))
            rows.append([x.handle.data for x in (joined if isinstance(joined, tuple) else (joined,))])
        stacked = [np.stack(x, axis=self.axis) for x in zip(*rows, strict=True)]
        return at(stacked)

    interpreter.ScanOps.generic_scan = generic_scan
