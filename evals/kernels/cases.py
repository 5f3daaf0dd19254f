"""The calls that the kernel report records: rules in bfloat16 on the ``meta`` device, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from linrec.evals.kernels.capture import Recording, recording, size

# The shape at which traffic is counted: the batch and length of a large training step.
BATCH, LENGTH, HEADS, WIDTH = 4, 4096, 16, 128
WIDTHS = (64, 128, 256)


@dataclass
class Recorded:
    """A call's launches, and the least that any implementation of it moves: inputs once, outputs once (bytes)."""

    case: str
    width: int
    recording: Recording
    minimum: int


@dataclass(frozen=True)
class Case:
    """A rule called with one set of options; ``shape`` picks among an argument's alternative shapes."""

    rule: str
    sizes: dict[str, int] = field(default_factory=dict)
    shape: int = 0

    def inputs(self, width: int) -> dict[str, Tensor]:
        """Tokens in bfloat16; decays and parameters in float32, as layers make them."""
        from linrec.rules import RULES

        dims = {"B": BATCH, "T": LENGTH, "H": HEADS, "HV": HEADS, "G": 1, "K": width, "V": width}
        dims |= {"P": width, "N": width, "D": HEADS * width, **self.sizes}
        made = {}
        for name, arg in RULES[self.rule].arguments.items():
            wide = "T" not in arg.shapes[0] or arg.draw.endswith("decay")
            shape = [dims[d] for d in arg.shapes[self.shape % len(arg.shapes)]]
            dtype = torch.float32 if wide else torch.bfloat16
            made[name] = torch.empty(shape, device="meta", dtype=dtype, requires_grad=True)
        return made

    def call(self, inputs: dict[str, Tensor]) -> Any:
        """The rule's output and state."""
        from linrec.rules import RULES

        return RULES[self.rule](**inputs, backend="triton")


CASES = {
    "additive, one decay a head": Case("gla", shape=1),
    "additive, constant decay": Case("lightning"),
    "additive, a decay a channel": Case("gla"),
    "additive, read before write": Case("rwkv6"),
    "Mamba-2": Case("mamba2"),
    "delta": Case("gated_delta_net"),
    "delta, a decay a channel": Case("kimi_delta_attention"),
    "general": Case("rwkv7"),
    "diagonal": Case("rg_lru"),
    "selective scan": Case("mamba", {"N": 16}),
}


def record(case: str, width: int, architecture: str) -> list[Recorded]:
    """The forward and the backward of a case, as this architecture would run them."""
    from linrec.kernels.architecture import pretend

    made = CASES[case]
    inputs = made.inputs(width)
    with pretend(architecture):
        with recording() as forward:
            outputs = [x for x in torch.utils._pytree.tree_leaves(made.call(inputs)) if isinstance(x, Tensor)]
        minimum = sum(map(size, inputs.values())) + sum(map(size, outputs))
        found = [Recorded(f"{case} forward", width, forward, minimum)]
        (o, *_) = outputs
        with recording() as backward:
            gradients = torch.autograd.grad(o, list(inputs.values()), torch.empty_like(o), allow_unused=True)
        given = [x for x in gradients if x is not None]
        minimum = sum(map(size, inputs.values())) + size(o) + sum(map(size, given))
        found.append(Recorded(f"{case} backward", width, backward, minimum))
    return found
