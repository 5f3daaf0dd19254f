"""The interpreter of the kernel tests notices what a GPU would not forgive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402


@triton.jit
def double(x, y, n, size: tl.constexpr):
    at = tl.program_id(0) * size + tl.arange(0, size)
    tl.store(y + at, 2 * tl.load(x + at, mask=at < n, other=0.0).to(tl.float32), mask=at < n)


@triton.jit
def product(x, y, z, n: tl.constexpr):
    at = tl.arange(0, n)[:, None] * n + tl.arange(0, n)[None, :]
    tl.store(z + at, tl.dot(tl.load(x + at), tl.load(y + at)).to(z.dtype.element_ty))


@triton.jit
def half_defined(x, y, size: tl.constexpr):
    at = tl.arange(0, size)
    tl.store(y + at, tl.load(x + at, mask=at < size // 2))


@triton.jit
def shifted(x, n, size: tl.constexpr):
    """Every program reads its neighbour's element after having written its own."""
    at = tl.program_id(0)
    tl.store(x + at, at.to(tl.float32))
    tl.store(x + n + at, tl.load(x + (at + 1) % n))


@triton.jit
def own(x, barrier: tl.constexpr):
    at = tl.arange(0, 16)
    tl.store(x + at, at.to(tl.float32))
    if barrier:
        tl.debug_barrier()
    tl.store(x + 16 + at, tl.load(x + (at + 1) % 16))


@triton.jit
def arithmetic(x, y):
    at = tl.arange(0, 16)
    tl.store(y + at, tl.load(x + at) + tl.load(x + at))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_kernel_runs(device: str, dtype: torch.dtype) -> None:
    x = torch.randn(70, device=device).to(dtype)
    y = torch.empty_like(x)
    double[(3,)](x, y, 70, 32)
    assert torch.equal(y, 2 * x)


def test_allocations_are_poisoned(device: str) -> None:
    for made in (
        torch.empty(7, device=device),
        torch.ones(3, device=device).new_empty(4),
        torch.empty_like(torch.ones(5, device=device, dtype=torch.bfloat16)),
        torch.empty_strided((2, 3), (3, 1), device=device),
    ):
        assert made.isnan().all()


def test_bfloat16_products_and_rounding_are_right(device: str) -> None:
    x, y = torch.randn(2, 32, 32, device=device).bfloat16()
    z = torch.empty(32, 32, device=device, dtype=torch.bfloat16)
    product[(1,)](x, y, z, 32)
    exact = x.double() @ y.double()
    assert ((z.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()


@pytest.mark.interpreted
def test_strictness() -> None:
    x = torch.ones(32)
    y = torch.zeros(32)
    half_defined[(1,)](x, y, 32)
    assert y[:16].eq(1).all() and y[16:].isnan().all()
    with pytest.raises(Exception, match=r"outside every tensor.*elements 0 to 95 of a tensor with 80"):
        double[(1,)](torch.ones(80), torch.ones(128), 96, 128)
    with pytest.raises(Exception, match=r"race: a program (loads|stores) what another"):
        shifted[(16,)](x, 16, 1)
    with pytest.raises(Exception, match="race: a program loads what it stored"):
        own[(1,)](x, False)
    own[(1,)](x, True)
    with pytest.raises(Exception, match="in bfloat16: cast to float32 first"):
        arithmetic[(1,)](x.bfloat16(), y.bfloat16())


ROOT = Path(__file__).resolve().parents[2]

# A file of tests for a pytest of its own, in a folder of its own: one of them dies.
DYING = """
import ctypes
import pytest

@pytest.mark.interpreted
@pytest.mark.parametrize("which", ["good", "dead", "wrong", "after"])
def test_of_four(which):
    if which == "dead":
        ctypes.string_at(0)
    assert which != "wrong"
"""


def test_a_crash_fails_one_test(tmp_path: Path) -> None:
    (tmp_path / "test_dying.py").write_text(DYING)
    (tmp_path / "conftest.py").write_text("from tests.kernels.conftest import *\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "2 failed, 2 passed" in done.stdout, done.stdout
    assert "killed by SIGSEGV" in done.stdout
    for which, outcome in {"good": "PASSED", "dead": "FAILED", "wrong": "FAILED", "after": "PASSED"}.items():
        assert f"{outcome} test_dying.py::test_of_four[{which}]" in done.stdout
