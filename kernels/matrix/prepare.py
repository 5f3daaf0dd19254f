"""What the host code of the matrix kernels shares: sizes and flags of a call, scores and inverses, launching."""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

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


class Inputs(NamedTuple):
    """What every pass is given, in the order of the operators' schemas.

    Tensors as in :class:`linrec.engines.matrix.terms.MatrixTerms`, any of float32, float16 and bfloat16; sums and
    states are float32. ``state`` ``[B or segments, HV, K, V]``; ``cu_seqlens`` ``[segments + 1]`` of a batch of one;
    ``chunk`` 16, 32, 64, or None for the table's.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None
    a: Tensor | None
    b: Tensor | None
    bonus: Tensor | None
    write: Tensor | None
    erase: Tensor | None
    state: Tensor | None
    cu_seqlens: Tensor | None
    scale: float
    chunk: int | None
    predict: str
    readout: str

    @property
    def differentiated(self) -> tuple[Tensor | None, ...]:
        """Those that have gradients."""
        tokens = self.q, self.k, self.v, self.g, self.a, self.b
        return *tokens, self.bonus, self.write, self.erase, self.state

    @property
    def settings(self) -> tuple[float, int | None, str, str]:
        """The fields that are no tensors."""
        return self.scale, self.chunk, self.predict, self.readout

    @property
    def by_channel(self) -> bool:
        """Whether every channel has a decay of its own."""
        return self.g is not None and self.g.dim() == 4

    @property
    def predicts(self) -> bool:
        """Whether something reads the state before it is written."""
        return self.a is not None or self.erase is not None

    @property
    def place(self) -> tuple[str, str, int, int]:
        """Where the table of launches is looked up."""
        path = path_of(self.by_channel, self.predicts, self.b is not None)
        return architecture(self.v.device), path, max(self.k.shape[3], self.v.shape[3]), self.v.element_size()

    @property
    def chunk_length(self) -> int:
        """Tokens of a chunk."""
        return self.chunk or chunk_length(*self.place)


DIFFERENTIATED = Inputs._fields[: Inputs._fields.index("cu_seqlens")]
_KINDS = {Tensor: "Tensor", Tensor | None: "Tensor?", float: "float", int | None: "int?", str: "str"}
SCHEMA = ", ".join(f"{_KINDS[kind]} {name}" for name, kind in get_type_hints(Inputs).items())


class Shapes(NamedTuple):
    """The sizes that all launches share."""

    sequences: int
    length: int
    slots: int  # chunks, of a packed batch at the most
    groups: int  # of chunks, likewise
    flags: dict[str, Any]
    at: tuple[str, str, int, int]  # where the table of launches is looked up


def prepared(inputs: Inputs, **more: Tensor | None) -> tuple[dict[str, Any], Shapes]:
    """Arguments of every kernel by name, with those of ``more``, and the sizes."""
    named = {**inputs._asdict(), **more}
    x: dict[str, Any] = {n: t.contiguous() if isinstance(t, Tensor) else t for n, t in named.items()}
    q, v, a, b, packed = (x[n] for n in ("q", "v", "a", "b", "cu_seqlens"))
    (batch, length, heads, width_k), (hv, width_v) = q.shape, v.shape[2:]
    sequences = batch if packed is None else packed.shape[0] - 1
    chunk, at = inputs.chunk_length, inputs.place
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
        "CHANNEL": inputs.by_channel,
        "DELTA": inputs.predicts,
        "GENERAL": b is not None,
        "PREDICT_NOW": inputs.predict == "decayed",
        "READ_NOW": inputs.readout == "post",
    }
    exact = "ieee" if at[0].startswith("gfx") else "tf32x3"
    x |= flags | {"length": length, "sequences": sequences, "DT": DTYPES[v.dtype]}
    x |= {"PRECISION": exact, "LEVELS": chunk.bit_length() - 1}
    x["SEQUENCES"] = 1 if packed is None else triton.next_power_of_2(max(sequences, 1))
    return x, Shapes(sequences, length, slots, groups, flags, at)


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
