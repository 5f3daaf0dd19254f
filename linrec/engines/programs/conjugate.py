"""Regularised least squares over a growing past: (H_t + Diag(lam)) x_t = q_t for all t at once.

H_t = e^{g_t} H_{t-1} + w_t k_t^T with w_t = beta_t k_t is a matrix recurrence. A conjugate-gradient step needs H_t x_t
for every t. What does not depend on x is formed once: the decays between the rows of a chunk and H before each chunk.
Then a step is two batched products over all chunks of a piece, however long the sequence:

.. code-block:: text

    H_i x_i = e^{G_i} H_entry x_i + sum_{j <= i} e^{G_i - G_j} (w_j . x_i) k_j

On a GPU it is one call of the matrix engine. Derivatives are implicit: with A x = q, dx = A^-1 (dq - dA x), one more
solve whatever the number of iterations, and dA x is the derivative of one product. For second derivatives, forward mode
and function transforms x + A^-1 (q - A x), with x held fixed, is solved directly at every token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from linrec.engines.matrix import MatrixTerms
from linrec.engines.numerics.backends import prefers_triton
from linrec.engines.numerics.checks import differentiated, readable, transformed
from linrec.engines.numerics.decays import between, cumulative_decay, grown, lower
from linrec.engines.numerics.derivatives import adjoint, differentiated_again, without_autocast
from linrec.engines.numerics.recurrence import recurrence
from linrec.engines.programs.program import Run

SHORTEST = 16  # rows of a chunk, else half the key's width: then H before all chunks is no more than two times their k
PIECE = 1 << 17  # numbers of x that are solved for together: they and their systems stay in cache

Product = Callable[[Tensor], Tensor]


class System(NamedTuple):
    """k, w ``[B, T, HV, K]``, g ``[B, T, HV]``, lam ``[HV, K]``, H_0 ``[B, HV, K, K]``."""

    k: Tensor
    w: Tensor
    g: Tensor
    lam: Tensor
    gram: Tensor


def solve(run: Run, system: System, q: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """x_t with (H_t + Diag(lam)) x_t = q_t, q ``[B, T, HV, K]``, and the last H; differentiable in q and in the
    system."""
    fixed = System(*(t.detach() for t in system))
    with torch.no_grad():
        x = _solved(run, fixed, q.detach(), iterations)
    seen, gram = run.matrix(MatrixTerms(x, system.w, system.k, system.g), system.gram)
    if not differentiated(q, *system):
        return x, gram
    change = q - seen - system.lam * x  # no more than rounding, with the derivative dq - dA x
    if transformed(q, *system):
        y = _direct(change, *system)
        return x + (y - y.detach()), gram
    return _Implicit.apply(run, iterations, x, change, *system), gram


class _Implicit(torch.autograd.Function):
    """x + A^-1 change, for the derivative of the change alone: A^-1 of it. A is symmetric, so it is its own adjoint.

    Of the system it needs no derivative, as long as no second one is asked for: the change is zero.
    """

    @staticmethod
    def forward(ctx: Any, run: Run, iterations: int, x: Tensor, *tensors: Tensor) -> Tensor:
        ctx.how = run, iterations
        ctx.save_for_backward(*tensors)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        change, *system = ctx.saved_tensors
        run, iterations = ctx.how
        with torch.no_grad(), without_autocast(grad):
            solution = _solved(run, System(*system), grad, iterations)
        if not differentiated_again(grad):
            return None, None, None, solution, *[None] * len(system)
        # With the same values, also where the iterations have not come to their end.
        of_change, *of_system = adjoint(_plain, (change, *system), (grad,))
        assert of_change is not None
        found = (
            of_change - of_change.detach() + solution,
            *(g if g is None else g - g.detach() for g in of_system),
        )
        return None, None, None, *found


def _plain(change: Tensor, *system: Tensor) -> tuple[Tensor]:
    return (_direct(change, *system),)


def _direct(q: Tensor, k: Tensor, w: Tensor, g: Tensor, lam: Tensor, gram: Tensor) -> Tensor:
    """A^-1 q from every H_t ``[B, T, HV, K, K]``, in calls that can be differentiated any number of times."""
    grams = recurrence(g.exp()[..., None, None], w[..., :, None] * k[..., None, :], gram)
    return (torch.linalg.inv(grams.mT + torch.diag_embed(lam)) @ q[..., None])[..., 0]


def _solved(run: Run, system: System, q: Tensor, iterations: int) -> Tensor:
    """A^-1 q. With lam moved into keys and state, A is H + I, which is the preconditioning by lam."""
    if not q.numel():
        return q
    root = system.lam.rsqrt()
    scaled = System(
        system.k * root,
        system.w * root,
        system.g,
        system.lam,
        root[..., None] * system.gram * root[..., None, :],
    )
    if prefers_triton(run.call.backend, q, *system):
        terms = MatrixTerms(q, scaled.w, scaled.k, scaled.g)
        return root * conjugate_gradients(
            lambda x: x + run.matrix(terms.with_tensors({"q": x}), scaled.gram)[0], root * q, iterations
        )
    own = max(SHORTEST, q.shape[3] // 2)
    longest = q.shape[1] if run.call.form == "parallel" else run.call.chunk_size or own
    return root * _in_chunks(scaled, root * q, longest, iterations)


def conjugate_gradients(product: Product, q: Tensor, iterations: int) -> Tensor:
    """x with product(x) = q, for all rows of q ``[..., K]`` side by side.

    A row whose residual has reached zero stays where it is: its step is 0 / tiny. Where values can be looked at
    without waiting for a device, no more steps are taken once every residual is below rounding.
    """
    tiny, rounding = torch.finfo(q.dtype).tiny, torch.finfo(q.dtype).eps
    looks = q.device.type == "cpu" and readable(q) and not transformed(q)
    x, residual, direction = torch.zeros_like(q), q, q
    size = (residual * residual).sum(-1, keepdim=True)
    goal = rounding * rounding * size
    for _ in range(iterations):
        image = product(direction)
        step = size / ((direction * image).sum(-1, keepdim=True) + tiny)
        x, residual = torch.addcmul(x, step, direction), torch.addcmul(residual, step, image, value=-1)
        new = (residual * residual).sum(-1, keepdim=True)
        if looks and bool((new <= goal).all()):
            break
        direction, size = torch.addcmul(residual, new / (size + tiny), direction), new
    return x


class Rows(NamedTuple):
    """Chunks of C tokens: keys ``[N, C, K]``, reads ``[N, K, C + K]`` (w of the rows, and H before the chunk), the
    decays between rows ``[N, C, C]`` and since the chunk's entry ``[N, C, 1]``."""

    keys: Tensor
    reads: Tensor
    within: Tensor
    entry: Tensor

    def product(self, x: Tensor) -> Tensor:
        """x + H x, x ``[N, C, K]``."""
        rows = x.shape[1]
        read = torch.bmm(x, self.reads)
        past = torch.addcmul(x, read[..., rows:], self.entry)
        return torch.baddbmm(past, read[..., :rows] * self.within, self.keys)


def _in_chunks(system: System, q: Tensor, longest: int, iterations: int) -> Tensor:
    """Chunks of at most ``longest`` tokens, as many at a time as make a piece. Here lam is one."""
    length = q.shape[1]
    size = math.ceil(length / math.ceil(length / longest))
    span = size * max(1, PIECE // q[:, :size].numel()) if q.is_cpu else length
    gram, found = system.gram, []
    for start in range(0, length, span):
        part = slice(start, start + span)
        x = (system.k[:, part], system.w[:, part], system.g[:, part, :, None], q[:, part])
        k, w, g, wanted = (_chunked(t, size) for t in x)
        rows, gram = _rows(k, w, g, gram)
        solution = _by_piece(rows, rearrange(wanted, "B N HV C K -> (B N HV) C K"), iterations)
        sizes = {"B": wanted.shape[0], "HV": wanted.shape[2]}
        found.append(rearrange(solution, "(B N HV) C K -> B (N C) HV K", **sizes))
    return torch.cat(found, dim=1)[:, :length]


def _chunked(x: Tensor, size: int) -> Tensor:
    """``[B, T, HV, K] -> [B, N, HV, C, K]`` for N chunks; rows of padding are zero, and so is their solution."""
    padded = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % size))
    return rearrange(padded, "B (N C) HV K -> B N HV C K", C=size)


def _rows(k: Tensor, w: Tensor, g: Tensor, gram: Tensor) -> tuple[Rows, Tensor]:
    """From chunks ``[B, N, HV, C, .]`` and H before them; also H after them."""
    total = cumulative_decay(g)
    last = total[..., -1:, :]
    written = (w * grown(last - total, w)).mT @ k
    after = recurrence(grown(last, k), written, gram)
    before = torch.cat([gram[:, None], after[:, :-1]], dim=1)
    within = between(total, total, lower(k.shape[3], k.device), k)
    parts = k, torch.cat([w.mT, before], dim=-1), within, grown(total, k)
    return Rows(*(rearrange(x, "B N HV ... -> (B N HV) ...") for x in parts)), after[:, -1]


def _by_piece(rows: Rows, q: Tensor, iterations: int) -> Tensor:
    """Solve for q ``[N, C, K]``; with many heads even one chunk of each is more than a piece."""
    most = max(1, PIECE // q[0].numel()) if q.is_cpu else len(q)
    pieces = zip(q.split(most), *(x.split(most) for x in rows), strict=True)
    return torch.cat([conjugate_gradients(Rows(*own).product, part, iterations) for part, *own in pieces])
