"""The chunk algorithm: matrix products inside a chunk, a state between chunks.

With G the inclusive cumulative log-decay of the chunk and S the entry state, every exponent formed is a
sum of log-decays, hence <= 0: nothing can overflow, and underflow to zero is the right answer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.matrix.terms import Heads

SUB_CHUNK = 16


def scan_chunks(x: Heads, state: Tensor, chunk: int, predict: str, readout: str) -> tuple[Tensor, Tensor]:
    """Run chunk after chunk; ``state`` is ``[B, H, R, K, V]``. Returns (o ``[B, H, R, T, V]``, final state)."""
    length = x.v.shape[-2]
    outputs = []
    for start in range(0, length, chunk):
        o, state = one_chunk(x.rows(start, min(start + chunk, length)), state, predict, readout)
        outputs.append(o)
    return (torch.cat(outputs, dim=-2) if outputs else torch.zeros_like(x.v)), state


def one_chunk(x: Heads, state: Tensor, predict: str, readout: str) -> tuple[Tensor, Tensor]:
    """Output and exit state of one chunk (of any length: the parallel form is a chunk of length T)."""
    total = cumulative_decay(x.g)
    before = F.pad(total[..., :-1, :], (0, 0, 1, 0))  # exclusive sum by shifting: total - g would lose digits
    seen_by_q = total if readout == "post" else before
    reads_now = readout == "post"
    scores_qk = decayed_scores(x.q, x.k, seen_by_q, total, diagonal=reads_now)
    o = (x.q * _exp(seen_by_q, x.q)) @ state
    if x.bonus is not None:
        o = o + (x.q * x.bonus * x.k).sum(-1, keepdim=True) * x.v
    to_end = _exp(total[..., -1:, :] - total, x.k)
    new_state = _exp(total[..., -1:, :], state).mT * state
    if x.a is None:
        written = x.v
    else:
        seen_by_a = total if predict == "decayed" else before
        from_entry = (x.a * _exp(seen_by_a, x.a)) @ state
        if x.b is None:  # delta path: the prediction is written with k itself, so it merges with v
            system = decayed_scores(x.a, x.k, seen_by_a, total, diagonal=False)
            written = solve_unit_lower(system, x.v + from_entry)
        else:
            within = decayed_scores(x.a, x.k, seen_by_a, total, diagonal=False) @ x.v
            system = decayed_scores(x.a, x.b, seen_by_a, total, diagonal=False)
            predicted = solve_unit_lower(system, within + from_entry)
            o = o + decayed_scores(x.q, x.b, seen_by_q, total, diagonal=reads_now) @ predicted
            new_state = new_state + (x.b * to_end).mT @ predicted
            written = x.v
    return o + scores_qk @ written, new_state + (x.k * to_end).mT @ written


def cumulative_decay(g: Tensor) -> Tensor:
    """Cumulative sum of log-decays over the chunk, in float64 where the device has it.

    Only differences of these sums are used; in float32 one strong reset (g = -400) would cost the decays
    after it three digits.
    """
    return g.to(g.dtype if g.device.type == "mps" else torch.float64).cumsum(-2)


def _exp(exponent: Tensor, like: Tensor) -> Tensor:
    return exponent.to(like.dtype).exp()


def decayed_scores(x: Tensor, y: Tensor, at_x: Tensor, at_y: Tensor, *, diagonal: bool) -> Tensor:
    """M_ij = sum_d x_id y_jd e^{at_x_id - at_y_jd} for j <= i (j < i without the diagonal), else 0.

    ``at_y`` is the inclusive cumulative log-decay, ``at_x`` that or the exclusive one; last dimension 1 or K.
    """
    length = x.shape[-2]
    keep = torch.ones(length, length, dtype=torch.bool, device=x.device).tril(0 if diagonal else -1)
    if at_y.shape[-1] == 1:
        # The exponent is masked, not the result: exp of the upper triangle could overflow, and 0 * inf has no gradient.
        decay = _exp((at_x - at_y.mT).masked_fill(~keep, -torch.inf), x)
        return (x @ y.mT) * decay
    blocks = [
        _block_row(x, y, at_x, at_y, keep, start, min(start + SUB_CHUNK, length))
        for start in range(0, length, SUB_CHUNK)
    ]
    return torch.cat(blocks, dim=-2)


def _block_row(
    x: Tensor, y: Tensor, at_x: Tensor, at_y: Tensor, keep: Tensor, start: int, stop: int
) -> Tensor:
    """Rows ``start .. stop`` of the scores with a decay of its own for every channel.

    Left of the diagonal block both factors are taken relative to the decay just before the block, so both are
    <= 1 and the block is one product. On the diagonal the exponents are formed for each (i, j, d).
    """
    xi, gi = x[..., start:stop, :], at_x[..., start:stop, :]
    yi, hi = y[..., start:stop, :], at_y[..., start:stop, :]
    exponent = (gi[..., :, None, :] - hi[..., None, :, :]).masked_fill(
        ~keep[start:stop, start:stop, None], -torch.inf
    )
    here = (xi[..., :, None, :] * yi[..., None, :, :] * _exp(exponent, x)).sum(-1)
    right = x.shape[-2] - stop
    if start == 0:
        return F.pad(here, (0, right))
    reference = at_y[..., start - 1 : start, :]
    left = (xi * _exp(gi - reference, x)) @ (y[..., :start, :] * _exp(reference - at_y[..., :start, :], y)).mT
    return F.pad(torch.cat([left, here], dim=-1), (0, right))


def solve_unit_lower(system: Tensor, rhs: Tensor) -> Tensor:
    """X with (I - system) X = rhs for a strictly lower triangular system, by forward substitution.

    Never by Neumann doubling: powers of the system grow combinatorially when keys are alike.
    """
    shape = torch.broadcast_shapes(system.shape[:-2], rhs.shape[:-2])
    return torch.linalg.solve_triangular(
        -system.expand(*shape, *system.shape[-2:]),
        rhs.expand(*shape, *rhs.shape[-2:]),
        upper=False,
        unitriangular=True,
    )
