"""The backward of the matrix engine on a GPU: scores, two passes over time, and one launch over all chunks.

Nothing of the length of the sequence is kept but the gradients themselves, the triangular inverses and one state
and one state gradient a chunk. See :mod:`linrec.kernels.matrix.backward_scan` for the equations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from linrec.kernels.architecture import architecture
from linrec.kernels.elementwise import on_device
from linrec.kernels.matrix.backward_chunk import chunk_gradients
from linrec.kernels.matrix.backward_scan import entry_states, state_gradients
from linrec.kernels.matrix.launches import Launch, launch_for, path_of
from linrec.kernels.matrix.scores import chunk_scores


class Shapes(NamedTuple):
    """The sizes that all launches share."""

    sequences: int
    length: int
    slots: int
    flags: dict[str, Any]
    at: tuple[str, str, int, int]  # where the table of launches is looked up

    @classmethod
    def of(cls, x: dict[str, Tensor | None], chunk: int, predict: str, readout: str) -> Shapes:
        """From tensors by name and the options of a call."""
        q, v, g, a, b, packed = x["q"], x["v"], x["g"], x["a"], x["b"], x["cu_seqlens"]
        assert q is not None and v is not None
        (batch, length, heads, width_k), (hv, width_v) = q.shape, v.shape[2:]
        sequences = batch if packed is None else packed.shape[0] - 1
        slots = batch * triton.cdiv(length, chunk) if packed is None else length // chunk + sequences
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
        path = path_of(flags["CHANNEL"], flags["DELTA"], flags["GENERAL"])
        at = (architecture(v.device), path, max(width_k, width_v), v.element_size())
        return cls(sequences, length, slots, flags, at)


def _run(kernel: triton.JITFunction, grid: tuple[int, ...], launch: Launch, x: dict[str, Any]) -> None:
    kernel[grid](
        **{name: x[name] for name in kernel.arg_names},
        num_warps=launch.warps,
        num_stages=launch.stages,
        enable_fp_fusion=True,
    )


def matrix_backward(
    do: Tensor, dlast: Tensor | None, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, a: Tensor | None,
    b: Tensor | None, bonus: Tensor | None, write: Tensor | None, erase: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float, chunk: int, predict: str, readout: str, inverse: Tensor | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of q, k, v, g, a, b, bonus, write, erase and state from those of the output and the final state.

    Tensors as in ``MatrixTerms``; ``cu_seqlens`` ``[segments + 1]`` of a batch of one; ``chunk`` 16, 32 or 64;
    ``inverse`` ``[B, T, HV, chunk]`` if the forward has kept it. None for what is not given.
    """
    named = {
        "do": do, "dlast": dlast, "q": q, "k": k, "v": v, "g": g, "a": a, "b": b, "bonus": bonus, "write": write,
        "erase": erase, "state": state, "cu_seqlens": cu_seqlens, "inverse": inverse,
    }  # fmt: skip
    x: dict[str, Any] = {n: None if t is None else t.contiguous() for n, t in named.items()}
    shapes = Shapes.of(x, chunk, predict, readout)
    x |= shapes.flags | {"scale": scale, "length": shapes.length, "sequences": shapes.sequences}
    x |= _gradients(x, shapes)
    amd = shapes.at[0].startswith("gfx")
    x |= {
        "DT": _kernel_dtype(v.dtype),
        "PRECISION": "ieee" if amd else "tf32x3",
        "SOLVE_PRECISION": "ieee" if amd else "tf32x3",
        "LEVELS": chunk.bit_length() - 1,
        "SEQUENCES": 1 if cu_seqlens is None else triton.next_power_of_2(shapes.sequences),
    }
    with on_device(v):
        if shapes.slots:
            _scores(x, shapes)
            _scans(x, shapes)
            _chunks(x, shapes)
        else:
            x["dstate"].copy_(dlast) if dlast is not None else x["dstate"].zero_()
    return _summed(x, shapes)


def _kernel_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype]


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
    made["dbonus"] = None if x["bonus"] is None else v.new_zeros((s.slots, hv, k), dtype=torch.float32)
    made["dstate"] = v.new_empty((s.sequences, hv, k, v.shape[3]), dtype=torch.float32)
    return made


def _scores(x: dict[str, Any], s: Shapes) -> None:
    """Fill in what of the scores and the inverse is needed and not there."""
    f = s.flags
    rows = (*x["v"].shape[:3], f["C"])
    wanted = {
        "inverse": f["DELTA"],
        "scores_qk": f["CHANNEL"] or f["GENERAL"],
        "scores_qb": f["GENERAL"],
        "scores_ak": f["GENERAL"],
    }
    given = x["inverse"] is not None
    for name, needed in wanted.items():
        if x.get(name) is None:
            x[name] = x["v"].new_empty(rows) if needed else None
    if wanted["scores_qk"] or (f["DELTA"] and not given):
        launch = launch_for("scores", *s.at)
        x["KB"] = _tile(launch.keys, f["K"])
        _run(chunk_scores, (s.slots, f["HV"]), launch, x)


def _scans(x: dict[str, Any], s: Shapes) -> None:
    f = s.flags
    shape = s.slots, f["HV"], f["K"], f["V"]
    x |= {"states": x["v"].new_empty(shape), "dstates": x["v"].new_empty(shape)}
    for stage, kernel in (("entry_states", entry_states), ("state_gradients", state_gradients)):
        launch = launch_for(stage, *s.at)
        x |= {"KB": _tile(launch.keys, f["K"]), "VB": _tile(launch.values, f["V"])}
        _run(kernel, (triton.cdiv(f["V"], x["VB"]), s.sequences * f["HV"]), launch, x)


def _chunks(x: dict[str, Any], s: Shapes) -> None:
    f = s.flags
    launch = launch_for("chunk_gradients", *s.at)
    x |= {"KB": _tile(launch.keys, f["K"]), "VB": _tile(0, f["V"])}
    levels = x["LEVELS"] if f["CHANNEL"] else 1
    _run(chunk_gradients, (s.slots, f["HV"]), launch, x | {"LEVELS": levels})


def _tile(wanted: int, width: int) -> int:
    full = max(16, triton.next_power_of_2(width))
    return min(wanted or full, full)


def _summed(x: dict[str, Any], s: Shapes) -> tuple[Tensor | None, ...]:
    """The gradients in their tensors' shapes and dtypes."""
    found = []
    for name in ("q", "k", "v", "g", "a", "b", "bonus", "write", "erase"):
        dx, t = x["d" + name], x[name]
        if dx is not None and name == "bonus":
            dx = dx.sum(0).to(t.dtype)
        elif dx is not None and dx.shape != t.shape:
            dx = dx.unflatten(2, (t.shape[2], -1)).sum(3).to(t.dtype)
        found.append(dx)
    dstate = x["dstate"] if x["state"] is None else x["dstate"].to(x["state"].dtype)
    return (*found, dstate)
