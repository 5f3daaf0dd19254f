"""The GPUs that kernels are compiled for: what one multiprocessor holds, and how many blocks share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linrec.errors import UnknownNameError


@dataclass(frozen=True)
class Gpu:
    """Limits of one multiprocessor (compute unit on AMD); memory in bytes, registers of 32 bits."""

    name: str
    product: str
    warps: int  # resident
    blocks: int  # resident
    registers: int
    shared: int  # of the multiprocessor
    shared_block: int  # the most one block may ask for
    shared_reserved: int  # taken by the runtime for each block
    lanes: int = 32

    @property
    def is_amd(self) -> bool:
        """Whether it is one of AMD's."""
        return self.name.startswith("gfx")

    @property
    def target(self) -> Any:
        """Triton's name for it."""
        from triton.backends.compiler import GPUTarget

        if self.is_amd:
            return GPUTarget("hip", self.name, self.lanes)
        return GPUTarget("cuda", int(self.name.removeprefix("sm_")), self.lanes)

    def occupancy(self, threads: int, registers: int, shared: int, tensor_memory: int = 0) -> tuple[int, str]:
        """Warps resident on a multiprocessor, and which resource stops a further block."""
        warps = -(-threads // self.lanes)
        limits = {"warps": self.warps // warps, "blocks": self.blocks}
        if self.is_amd:  # four SIMDs, each with 512 vector registers a lane, given out in eights
            limits["registers"] = 4 * min(8, 512 // max(8, -(-registers // 8) * 8)) // warps
        else:  # given out by warp, in eights a thread, from four partitions
            partition = self.registers // 4
            limits["registers"] = 4 * (partition // (max(1, -(-registers // 8)) * 8 * self.lanes)) // warps
        if shared:
            limits["shared"] = self.shared // (-(-shared // 128) * 128 + self.shared_reserved)
        if tensor_memory:
            limits["tensor memory"] = 512 // tensor_memory
        limiter = min(limits, key=lambda name: limits[name])
        return limits[limiter] * warps, limiter


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("sm_80", "A100", 64, 32, 65536, 167936, 166912, 1024),
        Gpu("sm_86", "RTX 30", 48, 16, 65536, 102400, 101376, 1024),
        Gpu("sm_89", "RTX 40, L4", 48, 24, 65536, 102400, 101376, 1024),
        Gpu("sm_90", "H100", 64, 32, 65536, 233472, 232448, 1024),
        Gpu("sm_100", "B200", 64, 32, 65536, 233472, 232448, 1024),
        Gpu("sm_120", "RTX 50", 48, 24, 65536, 102400, 101376, 1024),
        Gpu("gfx942", "MI300X", 32, 32, 131072, 65536, 65536, 0, lanes=64),
    )
}
CHECKED = ("sm_80", "sm_90", "sm_100", "gfx942")  # what the repository's baseline covers


def gpu(name: str) -> Gpu:
    """The GPU of this architecture name; UnknownNameError if it is none of :data:`GPUS`."""
    if name not in GPUS:
        raise UnknownNameError(f"unknown architecture {name!r}; one of {', '.join(GPUS)}")
    return GPUS[name]
