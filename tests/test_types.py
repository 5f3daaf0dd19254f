"""Type checkers see a rule's arguments and options: wrong calls fail, right ones pass."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CALLS = """
from typing import Any

import torch
from torch import Tensor

from linrec import layers, rules
from linrec.rule import Output, Rule
from linrec.rules import gla

x, g = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3)
every: dict[str, Any] = {}
rules.gated_delta_net(x, x, x, g, g)
rules.gated_delta_net(x, x, x, g, beta=g, state=None, scale=1.0, cu_seqlens=None, chunk_size=4, backend="torch")
rules.gated_delta_net(**every, chunk_size=8)
output: Output = gla.chunkwise(x, x, x, g=g, chunk_size=4)
o: Tensor = gla.step(x, x, x, g, state=gla.init_state(x, x, x, g)).o
gla.form("parallel")(x, x, x, g, scale=0.5)
rules.softmax_attention(x, x, x, window=None)
def of_any(rule: Rule[...]) -> Output:
    return rule(x, anything=x)
rules.get_rule("gla").recurrent(x, x, x, g)
layer: layers.Layer = layers.GatedDeltaNet(512)
decays: Tensor = rules.retnet_decay(4)
rules.gated_delta_net(x, gama=3, nonsense="a")  # wrong
rules.gated_delta_net(x, x, x, g)  # wrong
rules.gated_delta_net(x, x, x, g, g, g)  # wrong
rules.gated_delta_net(x, x, x, g, "strong")  # wrong
rules.gated_delta_net(x, x, x, g, g, state_=None)  # wrong
gla(x, x, x, g, scale="a")  # wrong
gla(x, x, x, g, cu_seqlens=[0, 2])  # wrong
gla(x, x, x, g, chunk_size=2.5)  # wrong
gla(x, x, x, g, backend=3)  # wrong
gla.parallel(x, x, x)  # wrong
gla.chunkwise(x, x, x, g, chunk_sise=4)  # wrong
gla.recurrent(x, x, x, g, beta=g)  # wrong
gla.step(x, x, x, g, scale="a")  # wrong
gla.init_state(x, x, x, g, nonsense=1)  # wrong
gla.form("parallel")(x, x, x, g, scale="a")  # wrong
rules.softmax_attention(x, x, x, window="8")  # wrong
rules.gated_delta_nett(x, x, x, g, g)  # wrong
layers.GatedDeltaNett(512)  # wrong
"""
WRONG = {i for i, line in enumerate(CALLS.splitlines(), 1) if line.endswith("# wrong")}


def reported(command: list[str], folder: Path) -> set[int]:
    """The lines of the file of calls that a type checker complains about."""
    (folder / "calls.py").write_text(CALLS, encoding="utf-8")
    done = subprocess.run([*command, str(folder / "calls.py")], cwd=ROOT, capture_output=True, text=True)
    lines = re.findall(r"calls\.py:(\d+)(?::\d+)?(?: -)?:? error", done.stdout)
    assert lines, done.stdout + done.stderr
    return {int(line) for line in lines}


@pytest.mark.slow
def test_mypy_sees_the_arguments_of_a_rule(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--cache-dir",
        str(tmp_path / "cache"),
        "--follow-imports",
        "silent",
    ]
    assert reported(command, tmp_path) == WRONG


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["basedpyright", "pyright"])
def test_pyright_sees_them_too(checker: str, tmp_path: Path) -> None:
    found = shutil.which(checker, path=str(Path(sys.executable).parent)) or shutil.which(checker)
    if found is None:
        pytest.skip(f"{checker} is not installed")
    command = [found, "--pythonpath", sys.executable, "--level", "error"]
    assert reported(command, tmp_path) == WRONG
