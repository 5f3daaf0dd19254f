"""The one table of launch configurations of the matrix kernels: chunk, tiles, warps and pipeline stages.

Nothing is tuned when a kernel first runs: what this file says is what is launched, on every machine alike. Of the
rows of a stage the first that fits the architecture, the path, the width and the element size counts, so special
rows stand above general ones.
"""

from __future__ import annotations

from typing import NamedTuple

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")  # those that rows may name; others take the nearest


class Launch(NamedTuple):
    """Tile widths along K and V (0: all of it), warps, stages of the software pipeline, and registers of a thread.

    The compiler for sm_100 spills where that lets two blocks share a multiprocessor, unless registers are given out (0:
    it has its way).
    """

    keys: int
    values: int
    warps: int
    stages: int
    registers: int = 0


class For(NamedTuple):
    """What a row is for: ``*`` stands for anything in an architecture and in a path (see :func:`path_of`)."""

    architecture: str
    path: str
    width: int = 256  # of K and V the wider, at most
    size: int = 4  # bytes of an element, at most


HOPPER = "sm_[19]*"  # sm_90 and sm_100

# Tokens a chunk. Long chunks move fewer states; what limits them is registers.
CHUNKS: tuple[tuple[For, int], ...] = (
    (For("*", "*general", 256, 2), 16),
    (For("sm_80", "*delta", 64, 2), 16),
    (For(HOPPER, "channel delta", 64, 2), 16),
    (For("*", "channel*", 128, 2), 32),
    (For("*", "channel*", 256, 2), 16),
    (For("sm_80", "shared delta", 128, 2), 32),
    (For("sm_80", "shared delta", 256, 2), 16),
    (For(HOPPER, "shared delta", 64, 2), 32),
    (For("*", "*", 128, 2), 64),
    (For(HOPPER, "*", 256, 2), 16),
    (For("*", "*", 256, 2), 32),
    (For("*", "*", 64), 32),
    (For("*", "*"), 16),
)

# Rows for elements of 2 bytes are the fastest found without spills; float32 takes what fits.
LAUNCHES: dict[str, tuple[tuple[For, Launch], ...]] = {
    "scores": (
        (For(HOPPER, "channel delta", 256, 2), Launch(32, 0, 4, 1)),
        (For("*", "*", 256, 2), Launch(64, 0, 4, 2)),
        (For("*", "*"), Launch(32, 0, 4, 1)),
    ),
    "forward_scan": (
        (For("sm_80", "shared additive", 64, 2), Launch(0, 32, 4, 1)),
        (For("sm_80", "shared additive", 128, 2), Launch(0, 16, 8, 2)),
        (For(HOPPER, "shared delta", 64, 2), Launch(0, 32, 4, 2)),
        (For(HOPPER, "shared delta", 128, 2), Launch(0, 16, 4, 2)),
        (For(HOPPER, "shared delta", 256, 2), Launch(0, 32, 8, 2)),
        (For("gfx942", "shared delta", 256, 2), Launch(0, 32, 4, 1)),
        (For("sm_*", "channel delta", 64, 2), Launch(0, 32, 4, 2)),
        (For("sm_*", "channel delta", 128, 2), Launch(0, 32, 8, 1)),
        (For(HOPPER, "channel delta", 256, 2), Launch(0, 32, 8, 1)),
        (For(HOPPER, "channel general", 128, 2), Launch(0, 32, 4, 2)),
        (For(HOPPER, "channel general", 256, 2), Launch(0, 32, 8, 2)),
        (For("sm_80", "*", 64, 2), Launch(0, 32, 4, 2)),
        (For("sm_80", "channel general", 128, 2), Launch(0, 32, 4, 1)),
        (For("sm_80", "shared delta", 256, 2), Launch(0, 16, 4, 2)),
        (For("sm_80", "*", 128, 2), Launch(0, 32, 4, 2)),
        (For("sm_80", "channel additive", 256, 2), Launch(0, 32, 8, 1)),
        (For("sm_80", "channel delta", 256, 2), Launch(0, 16, 8, 1)),
        (For("sm_80", "channel general", 256, 2), Launch(0, 16, 4, 1)),
        (For("sm_80", "*", 256, 2), Launch(0, 16, 4, 2)),
        (For(HOPPER, "shared additive", 128, 2), Launch(0, 32, 4, 2)),
        (For(HOPPER, "shared additive", 256, 2), Launch(0, 16, 4, 2)),
        (For(HOPPER, "channel additive", 128, 2), Launch(0, 32, 4, 2)),
        (For(HOPPER, "channel additive", 256, 2), Launch(0, 32, 8, 1)),
        (For("*", "*", 256, 2), Launch(0, 32, 4, 2)),
        (For("*", "*"), Launch(0, 16, 4, 1)),
    ),
    "entry_states": (
        (For("sm_80", "shared delta", 128, 2), Launch(0, 32, 4, 1)),
        (For("sm_100", "shared delta", 128, 2), Launch(0, 32, 8, 1)),
        (For(HOPPER, "channel additive", 128, 2), Launch(0, 32, 4, 1)),
        (For("*", "shared additive", 64, 2), Launch(0, 32, 4, 2)),
        (For("sm_80", "shared additive", 128, 2), Launch(0, 32, 4, 1)),
        (For("sm_80", "channel delta", 128, 2), Launch(0, 32, 4, 2)),
        (For("sm_80", "channel delta", 256, 2), Launch(0, 16, 8, 1)),
        (For(HOPPER, "channel delta", 128, 2), Launch(0, 32, 4, 2)),
        (For(HOPPER, "channel delta", 256, 2), Launch(0, 16, 4, 1)),
        (For("*", "*", 256, 2), Launch(0, 32, 4, 2)),
        (For("*", "*"), Launch(0, 16, 4, 1)),
    ),
    "state_gradients": (
        (For("sm_80", "channel delta", 64, 2), Launch(0, 32, 4, 1)),
        (For(HOPPER, "shared delta", 64, 2), Launch(0, 32, 4, 1)),
        (For("sm_100", "channel general", 64, 2), Launch(0, 32, 4, 1)),
        (For("*", "*", 64, 2), Launch(0, 32, 4, 2)),
        (For(HOPPER, "shared delta", 128, 2), Launch(0, 32, 8, 1)),
        (For(HOPPER, "shared delta", 256, 2), Launch(0, 32, 8, 1)),
        (For("gfx942", "shared delta", 256, 2), Launch(0, 32, 4, 1)),
        (For("sm_80", "channel delta", 128, 2), Launch(0, 32, 4, 1)),
        (For("*", "*", 128, 2), Launch(0, 32, 4, 2)),
        (For("sm_80", "*delta", 256, 2), Launch(0, 16, 4, 1)),
        (For("sm_80", "*general", 256, 2), Launch(0, 16, 4, 1)),
        (For(HOPPER, "channel delta", 256, 2), Launch(0, 32, 8, 1)),
        (For(HOPPER, "channel general", 256, 2), Launch(0, 32, 4, 1)),
        (For("*", "*", 256, 2), Launch(0, 32, 4, 2)),
        (For("*", "*"), Launch(0, 16, 4, 1)),
    ),
    "chunk_gradients": (
        (For("sm_80", "shared additive", 128, 2), Launch(32, 32, 8, 1)),
        (For("sm_100", "channel additive", 128, 2), Launch(64, 16, 8, 1, 255)),
        (For("sm_100", "channel additive", 256, 2), Launch(64, 16, 8, 1, 192)),
        (For("sm_100", "channel general", 256, 2), Launch(32, 16, 8, 1)),
        (For("sm_100", "shared delta", 128, 2), Launch(32, 16, 8, 1)),
        (For("sm_*", "*", 256, 2), Launch(64, 16, 8, 1)),
        (For("gfx942", "channel additive", 128, 2), Launch(32, 16, 4, 1)),
        (For("gfx942", "channel delta", 128, 2), Launch(16, 32, 4, 1)),
        (For("gfx942", "*general", 64, 2), Launch(64, 16, 4, 1)),
        (For("gfx942", "*general", 256, 2), Launch(64, 16, 4, 2)),
        (For("gfx942", "*", 256, 2), Launch(64, 16, 4, 1)),
        (For("*", "*"), Launch(32, 16, 4, 1)),
    ),
    "decode": (
        (For("*", "*"), Launch(0, 32, 4, 1)),
    ),
}  # fmt: skip


def path_of(channel: bool, delta: bool, general: bool) -> str:
    """``shared`` or ``channel`` (whose decay), then ``additive``, ``delta`` or ``general`` (what is corrected)."""
    return (
        f"{'channel' if channel else 'shared'} {'general' if general else 'delta' if delta else 'additive'}"
    )


CHUNK = "chunk"  # the stage of rows that give the tokens of a chunk


class At(NamedTuple):
    """What a row of a file is for, exactly: it was timed on this architecture, and says nothing about others."""

    stage: str
    architecture: str  # the GPU's own, not the nearest
    path: str
    width: int  # of K and V the wider, as kernels pad it
    size: int  # bytes of an element


Rows = dict[At, Launch | int]


def padded(width: int) -> int:
    """The power of two, of at least 16, that kernels pad a width to."""
    return max(16, 1 << (width - 1).bit_length())
