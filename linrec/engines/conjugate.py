"""Regularised least squares over a growing past: (H_t + Diag(lam)) x_t = q_t for all t at once.

H_t = e^{g_t} H_{t-1} + w_t k_t^T with w_t = beta_t k_t is a matrix recurrence, so the product H_t^T x_t of every t is
one call of the matrix engine, and conjugate gradients need one such call an iteration. Derivatives are implicit: with
A x = q, dx = A^-1 (dq - dA x), one more solve whatever the number of iterations. There are first derivatives only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from linrec.engines.matrix import MatrixTerms
from linrec.engines.program import Run


class System(NamedTuple):
    """k, w ``[B, T, HV, K]``, g ``[B, T, HV]``, lam ``[HV, K]``, H_0 ``[B, HV, K, K]``."""

    k: Tensor
    w: Tensor
    g: Tensor
    lam: Tensor
    gram: Tensor


def product(run: Run, system: System, x: Tensor) -> Tensor:
    """(H_t + Diag(lam)) x_t for every t; x ``[B, T, HV, K]``."""
    o, _ = run.matrix(MatrixTerms(x, system.w, system.k, system.g), system.gram)
    return o + system.lam * x


def solve(run: Run, system: System, q: Tensor, iterations: int) -> Tensor:
    """x_t with (H_t + Diag(lam)) x_t = q_t, differentiable in q and in the system."""
    fixed = System(*(t.detach() for t in system))
    x = _Solve.apply(q.detach(), *fixed, run, iterations)
    change = product(run, system, x) - product(run, fixed, x)  # zero, with the derivative dA x
    return _Solve.apply(q - change, *fixed, run, iterations)


class _Solve(torch.autograd.Function):
    """A^-1 q, linear in q; the system is a constant. A is symmetric, so it is its own adjoint."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, *rest: Any) -> Tensor:
        *system, run, iterations = rest
        return conjugate_gradients(run, System(*system), q, iterations)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *system, run, iterations = inputs
        ctx.save_for_backward(*system)
        ctx.save_for_forward(*system)
        ctx.how = run, iterations

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Solve.apply(grad, *ctx.saved_tensors, *ctx.how), *[None] * 7

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *rest: Any) -> Tensor:
        return _Solve.apply(tangent, *ctx.saved_tensors, *ctx.how)


def conjugate_gradients(run: Run, system: System, q: Tensor, iterations: int) -> Tensor:
    """Conjugate gradients, preconditioned by lam, for all tokens side by side.

    A token whose residual has reached zero stays where it is: its step is 0 / tiny.
    """
    tiny = torch.finfo(q.dtype).tiny
    x, residual = torch.zeros_like(q), q
    direction = near = residual / system.lam
    size = (residual * near).sum(-1, keepdim=True)
    for _ in range(iterations):
        image = product(run, system, direction)
        step = size / ((direction * image).sum(-1, keepdim=True) + tiny)
        x, residual = x + step * direction, residual - step * image
        near = residual / system.lam
        new = (residual * near).sum(-1, keepdim=True)
        direction, size = near + new / (size + tiny) * direction, new
    return x
