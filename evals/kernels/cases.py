"""The calls that the kernel report records: rules and operators in bfloat16 on the ``meta`` device, both directions."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from linrec.evals.kernels.capture import Recording, recording, size

# The shape at which traffic is counted: the batch and length of a large training step.
BATCH, LENGTH, HEADS, WIDTH = 4, 4096, 16, 128
WIDTHS = (64, 128, 256)


@dataclass
class Recorded:
    """A call's launches, and the least that any implementation of it moves: inputs once, outputs once (bytes).

    ``least_flops``: of the recurrence token by token, 2 K V for each product with a state; a backward twice that.
    """

    case: str
    width: int
    recording: Recording
    minimum: int
    least_flops: int


class Case(Protocol):
    """A call: its inputs at a width, and their outputs."""

    @property
    def products(self) -> int:
        """Products with a state that each token has."""

    def inputs(self, width: int) -> dict[str, Tensor]:
        """Its arguments for heads of this width, by name."""

    def call(self, inputs: dict[str, Tensor]) -> Any:
        """Its outputs."""


@dataclass(frozen=True)
class RuleCase:
    """A rule; ``shape`` picks among the shapes that an argument may have, ``products`` with a state has each token."""

    rule: str
    products: int
    shape: int = 0

    def inputs(self, width: int) -> dict[str, Tensor]:
        """Tokens in bfloat16; decays and parameters in float32, as layers make them."""
        from linrec.rules import RULES

        dims = {"B": BATCH, "T": LENGTH, "H": HEADS, "HV": HEADS, "K": width, "V": width}
        made = {}
        for name, arg in RULES[self.rule].arguments.items():
            shape = [dims[d] for d in arg.shapes[self.shape % len(arg.shapes)]]
            wide = "T" not in arg.shapes[0] or arg.draw.endswith("decay")
            dtype = torch.float32 if wide else torch.bfloat16
            made[name] = torch.empty(shape, device="meta", dtype=dtype, requires_grad=True)
        return made

    def call(self, inputs: dict[str, Tensor]) -> Any:
        """The rule's output and state."""
        from linrec.rules import RULES

        return RULES[self.rule](**inputs, backend="triton")


@dataclass(frozen=True)
class OperatorCase:
    """An operator of ``torch.ops.linrec``: from ``module``, with tensors of these dimensions and these options."""

    module: str
    operator: str
    shapes: dict[str, str]
    options: dict[str, Any]
    products: int = 0

    def inputs(self, width: int) -> dict[str, Tensor]:
        """What has a time axis in bfloat16, parameters and states in float32."""
        dims = {"B": BATCH, "T": LENGTH, "D": HEADS * width, "N": 16, "2": 2}
        return {
            name: torch.empty(
                [dims[d] for d in shape.split()],
                device="meta",
                dtype=torch.bfloat16 if "T" in shape else torch.float32,
                requires_grad=True,
            )
            for name, shape in self.shapes.items()
        }

    def call(self, inputs: dict[str, Tensor]) -> Any:
        """The operator's outputs."""
        importlib.import_module(self.module)
        return getattr(torch.ops.linrec, self.operator)(**inputs, **self.options)


CASES: dict[str, Case] = {
    "additive": RuleCase("gla", 2, shape=1),
    "delta": RuleCase("gated_delta_net", 3),
    "channel additive": RuleCase("gla", 2),
    "channel delta": RuleCase("kimi_delta_attention", 3),
    "channel general": RuleCase("generalized_delta", 4),
    "read before write": RuleCase("rwkv6", 2),
    "diagonal scan": OperatorCase(
        "linrec.kernels.diagonal",
        "diagonal_scan",
        {"decay": "B T D", "x": "B T D", "start": "B D"},
        {"bounds": None, "log": True, "late": False},
    ),
    "complex diagonal scan": OperatorCase(
        "linrec.kernels.diagonal",
        "diagonal_scan",
        {"decay": "B T D 2", "x": "B T D 2", "start": "B D 2"},
        {"bounds": None, "log": True, "late": False},
    ),
    "selective scan": OperatorCase(
        "linrec.kernels.selective",
        "selective_scan",
        {
            "step": "B T D",
            "u": "B T D",
            "rate": "D N",
            "into": "B T N",
            "out": "B T N",
            "skip": "D",
            "start": "B D N",
        },
        {"bounds": None, "scale": 1.0, "exponential": True, "keep": True},
    ),
}


def record(case: str, width: int, architecture: str) -> list[Recorded]:
    """The forward and the backward of a case, as this architecture would run them."""
    from linrec.kernels.architecture import pretend

    made = CASES[case]
    inputs = made.inputs(width)
    with pretend(architecture):
        with recording() as forward:
            o, state = made.call(inputs)[:2]  # what may follow is kept for the backward pass
        minimum = sum(map(size, [*inputs.values(), o, state]))
        flops = 2 * made.products * BATCH * LENGTH * HEADS * width * width
        found = [Recorded(f"{case} forward", width, forward, minimum, flops)]
        with recording() as backward:
            gradients = torch.autograd.grad(o, list(inputs.values()), torch.empty_like(o), allow_unused=True)
        given = [x for x in gradients if x is not None]
        minimum = sum(map(size, inputs.values())) + size(o) + sum(map(size, given))
        found.append(Recorded(f"{case} backward", width, backward, minimum, 2 * flops))
    return found
