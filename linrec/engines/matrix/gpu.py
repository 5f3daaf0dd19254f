"""The matrix engine through Triton: packed sequences and grouped heads are the kernels' own."""

from __future__ import annotations

import torch
from torch import Tensor

from linrec.donation import taken
from linrec.engines.matrix.terms import MatrixTerms
from linrec.engines.numerics.checks import differentiated
from linrec.rule import Call

CHUNKS = (16, 32, 64)


def in_triton(terms: MatrixTerms, state: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
    """Output of a batch or of packed segments, in the dtype of v unless more is computed with it, and final state."""
    from linrec.kernels.matrix.operators import matrix_scan, matrix_step_
    from linrec.kernels.matrix.prepare import Inputs

    one, shared = terms.v.shape[1] == 1, terms.g is not None and terms.g.dim() == 3
    t = terms.floored() if shared and not one else terms  # sums of decays by channel are not subtracted
    bounds = None if call.bounds is None else torch.tensor(call.bounds, device=t.v.device)
    x = Inputs(
        *(t.q, t.k, t.v, t.g, t.a, t.b, t.bonus, t.write, t.erase, state, bounds),
        *(call.scale, _chunk(call.chunk_size), t.predict, t.readout),
    )
    keep = differentiated(*(y for y in x.differentiated if y is not None))
    dtype = t.v.dtype if t.finish is None and t.skip is None else torch.float32
    if one and bounds is None and not keep:
        if state is None:
            state = t.v.new_zeros(t.state_shape(t.v.shape[0]), dtype=torch.float32)
        elif not taken(state):
            state = state.clone(memory_format=torch.contiguous_format)
        return t.skipped(matrix_step_(*x._replace(state=state), dtype)), state
    o, last, *_ = matrix_scan(*x, dtype, keep)
    return t.skipped(o), last


def _chunk(wanted: int | None) -> int | None:
    """The nearest length that the kernels have: the length of chunks changes rounding only."""
    return None if wanted is None else min(CHUNKS, key=lambda length: abs(length - wanted))
