"""Conjugate gradients for every token of a sequence: pieces, chunks, when they stop, and what they are told to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from linrec import rules
from linrec.engines.programs import conjugate
from linrec.testing import example_inputs, example_state, relative_error

MESA = rules.mesa_net


def dense(seed: int) -> tuple[Tensor, Tensor]:
    """Positive definite matrices ``[6, 5, 5]`` and right sides ``[1, 6, 5]``."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(6, 5, 5, generator=generator, dtype=torch.float64)
    wanted = torch.randn(1, 6, 5, generator=generator, dtype=torch.float64)
    return root @ root.mT + torch.eye(5, dtype=torch.float64), wanted


def test_every_row_has_its_own_system() -> None:
    systems, wanted = dense(0)
    wanted[0, 2] = 0
    x = conjugate.conjugate_gradients(lambda x: (systems @ x[..., None])[..., 0], wanted, 9)
    assert relative_error(x, torch.linalg.solve(systems, wanted[..., None])[..., 0]) < 1e-12
    assert not x[0, 2].any()


def test_no_step_is_taken_after_the_residuals_are_below_rounding() -> None:
    """Two different eigenvalues need two steps; a third would divide rounding by rounding."""
    scale = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    calls: list[Tensor] = []

    def product(x: Tensor) -> Tensor:
        calls.append(x)
        return scale * x

    wanted = torch.ones(1, 3, 4, dtype=torch.float64)
    x = conjugate.conjugate_gradients(product, wanted, 30)
    assert relative_error(x, wanted / scale) < 1e-14
    assert len(calls) <= 3
    few = conjugate.conjugate_gradients(product, wanted, 1)
    assert relative_error(few, wanted / scale) > 1e-2  # no more steps than are allowed


@pytest.mark.parametrize("piece", [1, 300, 700, 5000])
@pytest.mark.parametrize("chunk", [None, 7])
def test_pieces_do_not_change_the_result(monkeypatch: Any, piece: int, chunk: int | None) -> None:
    inputs = example_inputs(MESA, T=83)
    state = example_state(MESA, inputs)
    want = MESA.recurrent(**inputs, state=state).o
    monkeypatch.setattr(conjugate, "PIECE", piece)
    assert relative_error(MESA.chunkwise(**inputs, state=state, chunk_size=chunk).o, want) < 1e-12


def test_products_of_the_matrix_engine_give_the_same(monkeypatch: Any) -> None:
    """What runs on a GPU, here with the engine's torch path."""
    inputs = example_inputs(MESA, T=70)
    want = MESA.chunkwise(**inputs).o
    monkeypatch.setattr(conjugate, "prefers_triton", lambda *_: True)
    assert relative_error(MESA.chunkwise(**inputs).o, want) < 1e-12
    leaves = [x.requires_grad_() for x in inputs.values()]
    got = torch.autograd.grad(MESA.chunkwise(*leaves).o.sum(), leaves)
    monkeypatch.undo()
    for a, b in zip(got, torch.autograd.grad(MESA.recurrent(*leaves).o.sum(), leaves), strict=True):
        assert relative_error(a, b) < 1e-11


def test_single_precision_is_as_close_as_the_direct_solve() -> None:
    """Keys that resemble each other and weak decay: the systems are as badly conditioned as a layer makes them."""
    inputs = example_inputs(MESA, T=200, B=1, H=2, HV=2, K=32, V=16)
    inputs["k"] = torch.nn.functional.normalize(inputs["k"].abs() + 0.1, dim=-1)
    inputs["g"] = inputs["g"] / 100
    exact = MESA.recurrent(**inputs).o
    single = {n: x.float() for n, x in inputs.items()}
    direct = relative_error(MESA.recurrent(**single).o.double(), exact)
    assert relative_error(MESA.chunkwise(**single).o.double(), exact) < 2 * direct
