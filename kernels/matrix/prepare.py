"""What the host code of the matrix kernels shares: sizes and flags of a call, scores and inverses, launching."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from linrec.kernels.architecture import architecture
from linrec.kernels.matrix.launch_table import Launch, path_of
from linrec.kernels.matrix.launches import chunk_length, launch_for
from linrec.kernels.matrix.scores import chunk_scores

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
GROUP = 4  # chunks between two states that the backward keeps
KEPT = ("inverse", "scores_qk", "scores_qb", "scores_ak")


class Shapes(NamedTuple):
    """The sizes that all launches share."""

    sequences: int
    length: int
    slots: int  # chunks, of a packed batch at the most
    groups: int  # of chunks, likewise
    flags: dict[str, Any]
    at: tuple[str, str, int, int]  # where the table of launches is looked up


def prepared(
    named: dict[str, Tensor | None], scale: float, chunk: int | None, predict: str, readout: str
) -> tuple[dict[str, Any], Shapes]:
    """Arguments of every kernel by name, and the sizes."""
    x: dict[str, Any] = {n: None if t is None else t.contiguous() for n, t in named.items()}
    q, v, g, a, b, packed = (x[n] for n in ("q", "v", "g", "a", "b", "cu_seqlens"))
    (batch, length, heads, width_k), (hv, width_v) = q.shape, v.shape[2:]
    sequences = batch if packed is None else packed.shape[0] - 1
    chunk = chunk or default_chunk(q, v, g, a, b, x["erase"])
    slots, groups = (
        batch * triton.cdiv(length, n) if packed is None else length // n + sequences
        for n in (chunk, GROUP * chunk)
    )
    flags = {
        "H": heads,
        "HV": hv,
        "HA": 1 if a is None else a.shape[2],
        "HB": 1 if b is None else b.shape[2],
        "K": width_k,
        "V": width_v,
        "C": chunk,
        "CHANNEL": g is not None and g.dim() == 4,
        "DELTA": a is not None or x["erase"] is not None,
        "GENERAL": b is not None,
        "PREDICT_NOW": predict == "decayed",
        "READ_NOW": readout == "post",
    }
    at = _place(q, v, flags["CHANNEL"], flags["DELTA"], flags["GENERAL"])
    exact = "ieee" if at[0].startswith("gfx") else "tf32x3"
    x |= flags | {"scale": scale, "length": length, "sequences": sequences, "DT": DTYPES[v.dtype]}
    x |= {"PRECISION": exact, "LEVELS": chunk.bit_length() - 1}
    x["SEQUENCES"] = 1 if packed is None else triton.next_power_of_2(max(sequences, 1))
    return x, Shapes(sequences, length, slots, groups, flags, at)


def _place(q: Tensor, v: Tensor, channel: bool, delta: bool, general: bool) -> tuple[str, str, int, int]:
    path = path_of(channel, delta, general)
    return architecture(v.device), path, max(q.shape[3], v.shape[3]), v.element_size()


def default_chunk(
    q: Tensor, v: Tensor, g: Tensor | None, a: Tensor | None, b: Tensor | None, erase: Tensor | None
) -> int:
    """The table's chunk length for such tensors."""
    channel = g is not None and g.dim() == 4
    return chunk_length(*_place(q, v, channel, a is not None or erase is not None, b is not None))


def find_scores(x: dict[str, Any], s: Shapes) -> None:
    """Fill in what of the scores and the inverse is needed and not there."""
    f = s.flags
    needed = dict(
        zip(KEPT, (f["DELTA"], f["CHANNEL"] or f["GENERAL"], f["GENERAL"], f["GENERAL"]), strict=True)
    )
    missing = [name for name in KEPT if needed[name] and x.get(name) is None]
    for name in KEPT:
        if name not in missing:
            x.setdefault(name, None)
        else:
            x[name] = x["v"].new_empty((*x["v"].shape[:3], f["C"]))
    if missing:
        launch = launch_for("scores", *s.at)
        x["KB"] = tile(launch.keys, f["K"])
        # All four at once take more registers than there are.
        reads, solves = {"scores_qk": None, "scores_qb": None}, {"inverse": None, "scores_ak": None}
        for without in (reads, solves) if f["GENERAL"] else ({},):
            run(chunk_scores, (s.slots, f["HV"]), launch, x | without)


def run(kernel: triton.JITFunction, grid: tuple[int, ...], launch: Launch, x: dict[str, Any]) -> None:
    """Launch with the arguments that the kernel names."""
    limit = {"maxnreg": launch.registers} if launch.registers else {}
    kernel[grid](
        **{name: x[name] for name in kernel.arg_names},
        **limit,
        num_warps=launch.warps,
        num_stages=launch.stages,
        enable_fp_fusion=True,
    )


def tile(wanted: int, width: int) -> int:
    """A power of two of at least 16, that covers the width or is what was wanted."""
    full = max(16, triton.next_power_of_2(width))
    return min(wanted or full, full)
