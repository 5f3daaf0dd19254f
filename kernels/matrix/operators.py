"""The matrix engine on a GPU: the operators ``torch.ops.linrec.matrix_scan`` and ``matrix_step_``, and their host code.

The forward finds the inverses of all chunks at once where there are any, then makes one pass over time. Batches with
too few heads to fill the GPU are cut into segments of time first (:mod:`linrec.kernels.matrix.segments`). Arguments are
those of :class:`linrec.kernels.matrix.prepare.Inputs`, one by one. Gradients are first-order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from linrec.kernels.elementwise import on_device
from linrec.kernels.first_order import first_order
from linrec.kernels.matrix.backward import matrix_backward
from linrec.kernels.matrix.decode import decode
from linrec.kernels.matrix.forward_scan import forward_scan
from linrec.kernels.matrix.launches import launch_for
from linrec.kernels.matrix.prepare import KEPT, SCHEMA, Inputs, Shapes, find_scores, prepared, run, tile
from linrec.kernels.matrix.segments import entry_of_segments, segment_maps

PROGRAMS = 96  # a pass over time with fewer leaves much of a large GPU idle
LEAST = 8  # chunks a segment: shorter ones cost more in maps than they gain


def scan(*given: Any) -> tuple[Tensor, ...]:
    """Output ``[B, T, HV, V]`` in ``dtype``, the final state, and what a backward pass can use again.

    Kept are the inverse and the three scores, ``[B, T, HV, chunk]``, of which what is above the diagonal is not
    defined: no elements where there are none, or without ``keep``.
    """
    *inputs, dtype, keep = given
    x, shapes = prepared(Inputs(*inputs))
    v, f = x["v"], shapes.flags
    x["o"] = v.new_empty(v.shape, dtype=dtype)
    x["last"] = v.new_empty((shapes.sequences, f["HV"], f["K"], f["V"]), dtype=torch.float32)
    with on_device(v):
        if shapes.slots:
            find_scores(x, shapes)
            _pass_over_time(x, shapes)
        else:
            x["last"].zero_() if x["state"] is None else x["last"].copy_(x["state"])
    kept = (v.new_empty(0) if x.get(name) is None or not keep else x[name] for name in KEPT)
    return x["o"], x["last"], *kept


def step_(*given: Any) -> Tensor:
    """Output ``[B, 1, HV, V]`` of one token; the new state is written over ``state``, which must be contiguous."""
    *inputs, dtype = given
    x, shapes = prepared(Inputs(*inputs))
    x["o"] = x["v"].new_empty(x["v"].shape, dtype=dtype)
    launch, f = launch_for("decode", *shapes.at), shapes.flags
    x |= {"KB": tile(0, f["K"]), "VB": tile(launch.values, f["V"])}
    if shapes.sequences:
        with on_device(x["v"]):
            run(decode, (triton.cdiv(f["V"], x["VB"]), shapes.sequences * f["HV"]), launch, x)
    return x["o"]


def _pass_over_time(x: dict[str, Any], s: Shapes) -> None:
    launch = launch_for("forward_scan", *s.at)
    f = s.flags
    x |= {"KB": tile(0, f["K"]), "VB": tile(launch.values, f["V"])}
    blocks = triton.cdiv(f["V"], x["VB"])
    parts = _parts(x, s, blocks)
    if parts == 1:
        run(forward_scan, (blocks, s.sequences * f["HV"]), launch, x)
        return
    ends = _bounds(x, s, parts)
    entries = _entries(x | {"cu_seqlens": ends}, s, parts, launch)
    lasts = torch.empty_like(entries)
    cut = x | {"cu_seqlens": ends, "state": entries, "last": lasts}
    run(forward_scan, (blocks, s.sequences * parts * f["HV"]), launch, cut)
    x["last"].copy_(lasts.unflatten(0, (s.sequences, parts))[:, -1])


def _parts(x: dict[str, Any], s: Shapes, blocks: int) -> int:
    """Segments a sequence: as many as fill the GPU, of a packed batch one."""
    if x["cu_seqlens"] is not None:
        return 1
    wanted = PROGRAMS // max(blocks * s.sequences * s.flags["HV"], 1)
    return max(1, min(wanted, triton.cdiv(s.length, s.flags["C"]) // LEAST))


def _bounds(x: dict[str, Any], s: Shapes, parts: int) -> Tensor:
    """``[sequences * parts + 1]``: where segments start in the flattened batch, whole chunks from their sequence's."""
    chunks = triton.cdiv(s.length, s.flags["C"])
    at = torch.arange(parts, device=x["v"].device) * chunks // parts * s.flags["C"]
    rows = torch.arange(s.sequences, device=x["v"].device)[:, None] * s.length
    return torch.cat([(rows + at).flatten(), rows.new_full((1,), s.sequences * s.length)])


def _entries(x: dict[str, Any], s: Shapes, parts: int, launch: Any) -> Tensor:
    """The state before every segment, ``[sequences * parts, HV, K, V]``."""
    f, hv = s.flags, s.flags["HV"]
    x["maps"] = x["v"].new_empty((s.sequences * parts, hv, f["K"], f["V"] + f["K"]), dtype=torch.float32)
    x["entries"] = x["maps"].new_empty((s.sequences * parts, hv, f["K"], f["V"]))
    values = triton.cdiv(f["V"], x["VB"])
    both = values + triton.cdiv(f["K"], x["VB"])
    run(segment_maps, (both, s.sequences * parts * hv), launch, x)
    x |= {"segments": parts, "RB": min(64, x["KB"])}
    run(entry_of_segments, (values, s.sequences * hv), launch, x)
    return x["entries"]


def scan_backward(do: Tensor | None, dlast: Tensor | None, *given: Any) -> list[Tensor]:
    """The gradients of those of :data:`linrec.kernels.matrix.prepare.DIFFERENTIATED` that are there."""
    *inputs, kept = given
    x = Inputs(*inputs)
    do = torch.zeros_like(x.v) if do is None else do
    found = matrix_backward(do, dlast, x, [t if t.numel() else None for t in kept])
    return [dx for dx in found if dx is not None]


matrix_scan = torch.library.custom_op(
    "linrec::matrix_scan",
    scan,
    mutates_args=(),
    schema=f"({SCHEMA}, ScalarType dtype, bool keep) -> ({', '.join(['Tensor'] * (2 + len(KEPT)))})",
)
matrix_step_ = torch.library.custom_op(
    "linrec::matrix_step_",
    step_,
    mutates_args=("state",),
    schema=f"({SCHEMA.replace('Tensor? state', 'Tensor(a!) state')}, ScalarType dtype) -> Tensor",
)
matrix_scan_backward = torch.library.custom_op(
    "linrec::matrix_scan_backward",
    scan_backward,
    mutates_args=(),
    schema=f"(Tensor? do, Tensor? dlast, {SCHEMA}, Tensor[] kept) -> Tensor[]",
)


@matrix_scan.register_fake
def _scan_like(*given: Any) -> tuple[Tensor, ...]:
    *inputs, dtype, keep = given
    x = Inputs(*inputs)
    v, general = x.v, x.b is not None
    there = (x.predicts, x.by_channel or general, general, general)
    rows = (*v.shape[:3], x.chunk_length)
    sequences = v.shape[0] if x.cu_seqlens is None else x.cu_seqlens.shape[0] - 1
    last = v.new_empty((sequences, v.shape[2], x.k.shape[3], v.shape[3]), dtype=torch.float32)
    return v.new_empty(v.shape, dtype=dtype), last, *(v.new_empty(rows if keep and t else 0) for t in there)


@matrix_step_.register_fake
def _step_like(*given: Any) -> Tensor:
    *inputs, dtype = given
    v = Inputs(*inputs).v
    return v.new_empty(v.shape, dtype=dtype)


@matrix_scan_backward.register_fake
def _backward_like(do: Tensor | None, dlast: Tensor | None, *given: Any) -> list[Tensor]:
    *inputs, _ = given
    return [x.new_empty(x.shape) for x in Inputs(*inputs).differentiated if x is not None]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x = Inputs(*inputs[: len(Inputs._fields)])
    ctx.settings = x.settings
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*x.differentiated, x.cu_seqlens, *output[2:])


def _gradients(ctx: Any, do: Tensor | None, dlast: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    tensors, kept = saved[: -len(KEPT)], list(saved[-len(KEPT) :])
    x = Inputs(*tensors, *ctx.settings)
    others = [None] * (len(x) - len(x.differentiated) + 2)  # cu_seqlens, settings, dtype, keep
    if do is None and dlast is None:
        return (*[None] * len(x.differentiated), *others)
    found = iter(matrix_scan_backward(do, dlast, *x, kept))
    return (*(None if t is None else next(found) for t in x.differentiated), *others)


matrix_scan.register_autograd(_gradients, setup_context=_setup)
first_order(matrix_scan_backward)
