"""The forward of the matrix engine on a GPU: the inverses of all chunks at once where there are any, then one pass.

Batches with too few heads to fill the GPU are cut into segments of time first (:mod:`linrec.kernels.matrix.segments`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from linrec.kernels.elementwise import on_device
from linrec.kernels.matrix.decode import decode
from linrec.kernels.matrix.forward_scan import forward_scan
from linrec.kernels.matrix.launches import launch_for
from linrec.kernels.matrix.prepare import KEPT, Shapes, find_scores, prepared, run, tile
from linrec.kernels.matrix.segments import entry_of_segments, segment_maps

PROGRAMS = 96  # a pass over time with fewer leaves much of a large GPU idle
LEAST = 8  # chunks a segment: shorter ones cost more in maps than they gain


def forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, a: Tensor | None, b: Tensor | None, bonus: Tensor | None,
    write: Tensor | None, erase: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None, scale: float,
    chunk: int | None, predict: str, readout: str, dtype: torch.dtype, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output ``[B, T, HV, V]`` in ``dtype``, the final state, and what a backward pass can use again.

    Tensors as in ``MatrixTerms``; ``cu_seqlens`` ``[segments + 1]`` of a batch of one; ``chunk`` 16, 32, 64 or
    the table's. Kept are the inverse and the three scores, ``[B, T, HV, chunk]``, of which what is above the diagonal
    is not defined: no elements where there are none, or without ``keep``.
    """
    x, shapes = prepared(
        {"q": q, "k": k, "v": v, "g": g, "a": a, "b": b, "bonus": bonus, "write": write, "erase": erase,
         "state": state, "cu_seqlens": cu_seqlens}, scale, chunk, predict, readout,
    )  # fmt: skip
    x["o"] = v.new_empty(v.shape, dtype=dtype)
    f = shapes.flags
    x["last"] = v.new_empty((shapes.sequences, f["HV"], f["K"], f["V"]), dtype=torch.float32)
    with on_device(v):
        if shapes.slots:
            find_scores(x, shapes)
            _scan(x, shapes)
        else:
            x["last"].zero_() if state is None else x["last"].copy_(state)
    kept = [v.new_empty(0) if x.get(name) is None or not keep else x[name] for name in KEPT]
    return x["o"], x["last"], kept[0], kept[1], kept[2], kept[3]


def _scan(x: dict[str, Any], s: Shapes) -> None:
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


def step_(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, a: Tensor | None, b: Tensor | None, bonus: Tensor | None,
    write: Tensor | None, erase: Tensor | None, state: Tensor, scale: float, predict: str, readout: str,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Output ``[B, 1, HV, V]`` of one token; the new state is written over ``state``, which must be contiguous."""
    x, shapes = prepared(
        {"q": q, "k": k, "v": v, "g": g, "a": a, "b": b, "bonus": bonus, "write": write, "erase": erase,
         "state": state, "cu_seqlens": None}, scale, 16, predict, readout,
    )  # fmt: skip
    x["o"] = v.new_empty(v.shape, dtype=dtype)
    launch = launch_for("decode", *shapes.at)
    f = shapes.flags
    x |= {"KB": tile(0, f["K"]), "VB": tile(launch.values, f["V"])}
    if shapes.sequences:
        with on_device(v):
            run(decode, (triton.cdiv(f["V"], x["VB"]), shapes.sequences * f["HV"]), launch, x)
    return x["o"]
