"""Gradients of decays and strengths of a whole sequence, from what the chunks of ``scalar.py`` leave for the end.

Numbers a row are small beside the arguments, so what is done with them is done once for all chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.matrix.decay_gradient import earlier, later
from linrec.engines.matrix.gates import Gates
from linrec.engines.matrix.plan import Plan
from linrec.engines.numerics.scans import exact


def joined(chunks: Sequence[dict[str, Tensor]], gates: Sequence[Gates], plan: Plan) -> dict[str, Tensor]:
    """Gradients ``[chunks, B, H, R, C, 1]`` by the name of the argument; the rows that the last chunk lacks are zero.

    ``chunks`` first to last, with what there is of these, ``[B, H, R, C, 1]``: gradients of ``write`` and ``skip``;
    ``seen_a``, dr times what k sees in the state, and ``pairs_a``, dr times what k reads of the chunk's rows, both
    before gates scale them; ``seen_q``, ``kept`` and ``passed`` ``[B, H, R, 1, 1]``, before the decay of the chunk, of
    :mod:`linrec.engines.matrix.decay_gradient`; sums over ``rows`` and ``columns`` of its W in double precision, for
    the readers q and a apart or for both under q.
    """
    found = {name: _padded(chunk[name] for chunk in chunks) for name in chunks[0]}
    grads: dict[str, Tensor] = {name: found[name] for name in ("write", "skip") if name in found}
    if "seen_a" in found:
        grads["erase"] = -(found["pairs_a"] + found["seen_a"] * _padded(x.at_a for x in gates))
    if "kept" in found:
        grads["g"] = _decay_gradient(found, gates, plan)
    return grads


def _decay_gradient(found: dict[str, Tensor], gates: Sequence[Gates], plan: Plan) -> Tensor:
    whole = torch.stack([x.whole for x in gates]).view_as(found["passed"])
    dg = earlier(exact(found["kept"])) + found["passed"] * whole
    dg += later(found["rows_q"] + found["seen_q"], plan.reads_now) - later(found["columns_q"])
    if "seen_a" in found:
        seen_a = found["seen_a"] * _padded(x.pull_a for x in gates if x.pull_a is not None)
        dg += later(exact(seen_a), plan.predicts_now)
    if "rows_a" in found:
        dg += later(found["rows_a"], plan.predicts_now) - later(found["columns_a"])
    return dg


def _padded(parts: Iterable[Tensor]) -> Tensor:
    """One after the other ``[chunks, ...]``, the rows of the last filled up with zeros."""
    every = list(parts)
    first, last = every[0], every[-1]
    every[-1] = F.pad(last, (0, 0, 0, first.shape[-2] - last.shape[-2]))
    return torch.stack(every)
