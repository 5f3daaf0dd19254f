"""What an installed wheel must do, seen from outside the checkout."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

import linrec
from linrec import layers, models, rules

SITE = Path(sysconfig.get_path("purelib")).resolve()


def check_where() -> None:
    """linrec and its rooms come from the environment, and nothing is installed beside them."""
    assert Path(linrec.__file__).resolve().is_relative_to(SITE), (
        f"not the installed linrec: {linrec.__file__}"
    )
    for name in ("kernels", "models", "evals"):
        assert importlib.util.find_spec(name) is None, f"a top-level package {name!r} got installed"
    for name in ("engines", "rules", "layers", "kernels", "models", "evals"):
        (place,) = importlib.import_module(f"linrec.{name}").__path__
        assert Path(place).resolve().is_relative_to(SITE), f"linrec.{name} lies in {place}"


def check_forms() -> None:
    """The forms of a rule agree."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 70, 2, 8, dtype=torch.float64) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    g, beta = -torch.rand(2, 70, 2, dtype=torch.float64), torch.rand(2, 70, 2, dtype=torch.float64)
    want = rules.gated_delta_net.recurrent(q, k, v, g, beta)
    for form in ("parallel", "chunkwise"):
        got = rules.gated_delta_net.form(form)(q, k, v, g, beta)
        torch.testing.assert_close(got.o, want.o, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(got.state, want.state, rtol=1e-10, atol=1e-12)


def check_model() -> None:
    """A model reads a sequence at once and in pieces with the same result."""
    from linrec.models.config import Config
    from linrec.models.language_model import LanguageModel

    pattern = ("gated_delta_net", "softmax_attention")
    assert set(pattern) <= set(layers.LAYERS)
    model = LanguageModel(Config(vocab_size=257, d_model=32, num_heads=2, pattern=pattern)).eval()
    tokens = torch.randint(257, (2, 12))
    with torch.no_grad():
        whole = model(tokens).logits
        first = model(tokens[:, :11])
        last = model.step(tokens[:, 11:], first.state).logits
    torch.testing.assert_close(last[:, -1], whole[:, -1], rtol=1e-3, atol=1e-4)
    assert models.__name__ == "linrec.models"


def check_command() -> None:
    """The command is there, and runs."""
    command = Path(sys.executable).with_name("linrec")
    done = subprocess.run([command, "rules"], capture_output=True, text=True, check=True, timeout=120)
    assert "gated_delta_net" in done.stdout, done.stdout


if __name__ == "__main__":
    for check in (check_where, check_forms, check_model, check_command):
        check()
        print(f"{check.__name__}: ok")
