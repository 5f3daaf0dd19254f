"""The backward of the matrix engine on a GPU: scores, two passes over time, and one launch over all chunks.

Nothing of the length of the sequence is kept but the gradients themselves, the triangular inverses, what the delta rule
solved for with its gradient, and one state and one state gradient a group of chunks. See
:mod:`linrec.kernels.matrix.backward_scan` for the equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from linrec.kernels.elementwise import on_device
from linrec.kernels.matrix.backward_chunk import chunk_gradients
from linrec.kernels.matrix.backward_scan import entry_states, state_gradients
from linrec.kernels.matrix.launches import launch_for
from linrec.kernels.matrix.prepare import (
    DIFFERENTIATED,
    GROUP,
    KEPT,
    Inputs,
    Shapes,
    find_scores,
    prepared,
    run,
    tile,
)


def matrix_backward(
    do: Tensor, dlast: Tensor | None, inputs: Inputs, kept: Sequence[Tensor | None] = (None,) * len(KEPT)
) -> tuple[Tensor | None, ...]:
    """Gradients of :data:`linrec.kernels.matrix.prepare.DIFFERENTIATED` from those of the output and the final state.

    ``inputs`` and ``kept``: what the forward was given, and what it has kept. None for what is not given.
    """
    x, shapes = prepared(inputs, do=do, dlast=dlast, **dict(zip(KEPT, kept, strict=True)))
    v, state = x["v"], x["state"]
    x |= _gradients(x, shapes) | {"tokens": v.shape[0] * v.shape[1]}
    with on_device(v):
        if shapes.slots:
            find_scores(x, shapes)
            _scans(x, shapes)
            _chunks(x, shapes)
        else:
            if state is not None:
                x["dstate"].zero_() if dlast is None else x["dstate"].copy_(dlast)
    return _summed(x, shapes)


def _gradients(x: dict[str, Any], s: Shapes) -> dict[str, Tensor | None]:
    """Where the kernels write: for each value head where a key head has several."""
    hv, k = s.flags["HV"], s.flags["K"]
    made: dict[str, Tensor | None] = {}
    for name in ("q", "k", "v", "g", "a", "b", "write", "erase"):
        t = x[name]
        if t is not None and t.dim() == 4 and t.shape[2] != hv:
            made["d" + name] = t.new_empty((*t.shape[:2], hv, k), dtype=torch.float32)
        else:
            made["d" + name] = None if t is None else torch.empty_like(t)
    v = x["v"]
    made["dbonus"] = (
        None if x["bonus"] is None else v.new_zeros((GROUP * s.groups, hv, k), dtype=torch.float32)
    )
    shape = s.sequences, hv, k, v.shape[3]
    made["dstate"] = None if x["state"] is None else v.new_empty(shape, dtype=torch.float32)
    return made


def _scans(x: dict[str, Any], s: Shapes) -> None:
    f = s.flags
    shape = f["HV"], f["K"], f["V"]
    x |= {"GROUP": GROUP, "states": x["v"].new_empty((s.groups, *shape))}
    x["dstates"] = torch.empty_like(x["states"])
    for name in ("solved", "dr"):
        x[name] = torch.empty_like(x["v"]) if f["DELTA"] else None
    for stage, kernel in (("entry_states", entry_states), ("state_gradients", state_gradients)):
        launch = launch_for(stage, *s.at)
        x |= {"KB": tile(launch.keys, f["K"]), "VB": tile(launch.values, f["V"])}
        run(kernel, (triton.cdiv(f["V"], x["VB"]), s.sequences * f["HV"]), launch, x)


def _chunks(x: dict[str, Any], s: Shapes) -> None:
    f = s.flags
    launch = launch_for("chunk_gradients", *s.at)
    x |= {"KB": tile(launch.keys, f["K"]), "VB": tile(launch.values, f["V"])}
    blocks = triton.cdiv(f["K"], x["KB"])
    parts = _parts(x, f, blocks)
    levels = x["LEVELS"] if f["CHANNEL"] else 1
    run(chunk_gradients, (blocks + 1, GROUP * s.groups, f["HV"]), launch, x | parts | {"LEVELS": levels})
    for name, part in parts.items():
        x[name] = part[0] if blocks == 1 else part.sum(0)


def _parts(x: dict[str, Any], flags: dict[str, Any], blocks: int) -> dict[str, Tensor]:
    """Where blocks of K write their parts of what is a sum over K."""
    names = {"dg": x["g"] is not None and not flags["CHANNEL"], "derase": x["erase"] is not None}
    return {
        name: x[name].new_empty((blocks, *x[name].shape), dtype=torch.float32)
        for name, there in names.items()
        if there
    }


def _summed(x: dict[str, Any], s: Shapes) -> tuple[Tensor | None, ...]:
    """The gradients in their tensors' shapes and dtypes."""
    found = []
    for name in DIFFERENTIATED:
        dx, t = x["d" + name], x[name]
        if dx is not None and name == "bonus":
            dx = dx.sum(0)
        elif dx is not None and dx.shape != t.shape:
            dx = dx.unflatten(2, (t.shape[2], -1)).sum(3)
        found.append(dx if dx is None else dx.to(t.dtype))
    return tuple(found)
