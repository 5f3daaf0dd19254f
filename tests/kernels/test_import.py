"""Triton is imported where a kernel runs, and nowhere else: installing it changes nothing on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ORDINARY_USE = """
import pkgutil, importlib, torch, linrec, linrec.rules, linrec.layers, linrec.models, linrec.cli, linrec.engines
import linrec.models.language_model

for package in (linrec.engines, linrec.rules, linrec.layers):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)

q = k = v = torch.nn.functional.normalize(torch.randn(1, 70, 2, 16), dim=-1)
g, beta = torch.full((1, 70, 2), -0.1), torch.full((1, 70, 2), 0.5)
call = lambda **options: linrec.rules.gated_delta_net(q, k, v, g, beta, **options).o
assert torch.equal(call(), call(backend="torch"))
x = torch.randn(1, 70, 8, requires_grad=True)
linrec.rules.rg_lru(x, -x.detach().abs(), x.detach().sigmoid()).o.sum().backward()
assert not torch.cuda.is_initialized()
print("ordinary use ok")
"""


@pytest.mark.parametrize("package", ["triton", "fla"])
def test_ordinary_use_imports_no_kernel_compiler(package: str, tmp_path: Path) -> None:
    """With a package of that name in front of any other whose import ends the process."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise SystemExit('imported {package}')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ORDINARY_USE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "ordinary use ok" in done.stdout
