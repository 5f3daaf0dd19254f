"""Example inputs and error budgets, shared by tests, benchmarks and users.

Inputs are drawn from a rule's own argument annotations, so every rule has them. Tolerances are budgets,
not inventions: a low-precision result may be off by twice what an independent low-precision computation of
the same thing is off, plus the rounding of the output itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.arguments import Arg
from linrec.rule import Rule

SIZES = {"B": 2, "T": 65, "H": 2, "HV": 4, "HQ": 4, "G": 2, "K": 8, "V": 6, "P": 6, "N": 8}
SIZES |= {"C": 5, "D": 4, "E": 24, "J": 4, "L": 9, "M": 5, "R": 4, "RV": 3, "W": 4}


def example_inputs(
    rule: Rule,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    **sizes: int,
) -> dict[str, Any]:
    """The rule's tensor arguments by name, drawn in float64 on the CPU and then cast, so dtypes compare.

    They are typed as Any, so that ``rules.gla(**inputs)`` type-checks, whatever else the rule takes.

    ``sizes`` overrides the legend's dimensions (``T=130, HV=2``).
    """
    dims = {**SIZES, **sizes}
    generator = torch.Generator().manual_seed(seed)
    return {
        name: draw(arg, [dims[d] for d in arg.shapes[0]], generator).to(device, dtype)
        for name, arg in rule.arguments.items()
    }


def draw(arg: Arg, shape: list[int], generator: torch.Generator) -> Tensor:
    """One tensor of the argument's domain, float64."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if arg.draw == "unit":
        return F.normalize(x, dim=-1)
    if arg.draw == "log_decay":
        return F.logsigmoid(2 * x)
    if arg.draw == "weak_decay":  # a few percent a token
        return F.logsigmoid(2 * x) / 16
    if arg.draw == "strength":
        return x.sigmoid()
    if arg.draw == "rate":  # a learning rate at which a small network learns and does not diverge
        return x.sigmoid() / 50
    if arg.draw == "positive":
        return F.softplus(x)
    if arg.draw == "negative":
        return -F.softplus(x)
    return x


def example_state(rule: Rule, inputs: dict[str, Any], *, seed: int = 1, segments: int | None = None) -> Any:
    """A state that is not empty: what the rule leaves after a few random tokens of the same sizes."""
    first = next(inputs[n] for n, a in rule.arguments.items() if a.carries_tokens)
    shapes = {
        n: dict(zip(a.shape_for(inputs[n].dim()) or (), inputs[n].shape, strict=True))
        for n, a in rule.arguments.items()
    }
    dims = {d: size for shape in shapes.values() for d, size in shape.items()}
    dims.update(T=5, B=segments or dims["B"])
    before = example_inputs(rule, seed=seed, dtype=first.dtype, device=first.device, **dims)
    before = {n: x if "T" in shapes[n] else inputs[n] for n, x in before.items()}
    return rule.recurrent(**before).state


def relative_error(value: Tensor, reference: Tensor) -> float:
    """|value - reference| / |reference| in the Frobenius norm, in float64; value and reference ``[...]``."""
    value, reference = value.detach().double(), reference.detach().double()
    difference, size = (value - reference).norm(), reference.norm()
    return float(difference / size) if size > 0 else float(difference)


def budget(low_precision: Tensor, reference: Tensor, dtype: torch.dtype) -> float:
    """Allowed relative error: twice that of an independent computation in low precision, plus one rounding.

    low_precision and reference ``[...]``.
    """
    return 2 * relative_error(low_precision, reference) + torch.finfo(dtype).eps
