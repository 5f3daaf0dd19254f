"""What the tests of tuning and of its files share: rows, a file of them, a table, and a bench whose times are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from linrec.evals.kernels.tune import Job
from linrec.kernels.matrix import launches
from linrec.kernels.matrix.launch_table import CHUNK, LAUNCHES, At, Launch, Rows

SCAN = At("forward_scan", "sm_90", "shared delta", 128, 2)
WIDE = Launch(0, 64, 8, 3)
ROW = {**SCAN._asdict(), **WIDE._asdict()}

START: Rows = {
    At(stage, "sm_90", path, width, 2): Launch(32, 32, 4, 1)
    for stage in LAUNCHES
    for path in ("shared delta", "channel additive")
    for width in (64, 128)
}
START |= {At(CHUNK, "sm_90", "shared delta", 64, 2): 16}


def written(path: Path, *rows: Any) -> Path:
    path.write_text(json.dumps({"rows": rows}))
    return path


class Clock:
    """A bench: each stage takes a millisecond, or half of one with eight warps; chunks are best at 32."""

    architecture = "sm_90"

    def __init__(self) -> None:
        self.confirmed: list[Job] = []

    def milliseconds(self, job: Job) -> float:
        at = ("sm_90", "channel additive" if job.rule == "gla" else "shared delta", job.width, 2)
        if job.part == "both":
            return abs(launches.chunk_length(*at) - 32) + 1.0
        found = [launches.launch_for(stage, *at) for stage in LAUNCHES]
        if any(one.stages == 3 for one in found):
            raise RuntimeError("out of shared memory")
        return sum(0.5 if one.warps == 8 else 1.0 for one in found)

    def confirm(self, job: Job) -> None:
        self.confirmed.append(job)
