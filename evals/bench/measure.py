"""How results are compared, and times and memory taken."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linrec.errors import BenchmarkError
from linrec.testing import relative_error

Work = Callable[[], object]
AGREE = 1e-3  # float32 results of two algorithms over thousands of tokens; a wrong scale or decay is off by far more


def interleaved(works: Mapping[str, Work], rounds: int, patience: float = 20.0) -> dict[str, float]:
    """Best time of each in seconds. All take turns, so that a busy moment of the machine meets all of them.

    After ``patience`` seconds a work is left out of further rounds; every work runs at least twice, except that one
    that takes longer than ``patience`` runs once.
    """
    best, spent = dict.fromkeys(works, float("inf")), dict.fromkeys(works, 0.0)
    for count in range(max(rounds, 2)):
        for name, work in works.items():
            if spent[name] > patience or (count >= 2 and spent[name] * (count + 1) / count > patience):
                continue
            started = time.perf_counter()
            work()
            seconds = time.perf_counter() - started
            best[name], spent[name] = min(best[name], seconds), spent[name] + seconds
    return best


def matrix_peak(size: int = 2048, repeats: int = 8) -> float:
    """FLOP/s of a float32 matrix product on this machine, now."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / interleaved({"product": lambda: a @ b}, repeats)["product"]


def side_by_side(
    row: dict[str, Any],
    results: Iterable[tuple[Tensor, Tensor]],
    works: Mapping[str, Work],
    rounds: int,
    count: int = 1,
) -> dict[str, Any]:
    """The row of the table with its ``difference``, ``seconds``, ``peer_seconds`` and ``ratio``.

    ``results`` are pairs of ours and the peer's, compared before anything is timed (none: another function);
    ``works`` are "ours" and "theirs", each ``count`` times what the row is about. Raises BenchmarkError where the two
    are not the same function.
    """
    differences = [relative_error(ours, theirs) for ours, theirs in results]
    if differences:
        row = {**row, "difference": max(differences)}
        if not max(differences) < AGREE:
            raise BenchmarkError(
                f"{row['case']} ({row['pass']}): differs from {row['peer']} by {row['difference']:.1e}, "
                f"allowed {AGREE:.0e}; not timed"
            )
    times = {name: seconds / count for name, seconds in interleaved(works, rounds).items()}
    ratio = times["theirs"] / times["ours"]
    return {**row, "seconds": times["ours"], "peer_seconds": times["theirs"], "ratio": ratio}


def gradients(f: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Output and the gradients of all inputs for an output gradient that is fixed and dense."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    o = f(*leaves)
    weight = torch.linspace(-1, 1, o.numel(), dtype=o.dtype, device=o.device).view(o.shape)
    return o.detach(), *torch.autograd.grad(o, leaves, weight)


def peak_memory(work: Work) -> int:
    """Bytes by which the process grows at most while ``work`` runs, what its result holds included (Linux).

    For a fresh process: memory that an old one has freed is used again without growing.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew from what is resident now
    before = _status("VmRSS")
    result = work()
    peak = _status("VmHWM") - before
    del result
    return peak


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
