"""What is chosen by time on this processor, and each choice beside the plain call: never slower by more than 5 %."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from linrec.engines.numerics import choices, linear, products
from linrec.errors import BenchmarkError
from linrec.evals.bench.cases import delta_inputs, mamba2_inputs
from linrec.evals.bench.measure import side_by_side
from linrec.layers.projection import project
from linrec.rules import RULES

WEIGHTS = ((3352, 768), (768, 1536), (50288, 768), (1024, 1024))  # of the 130M Mamba-2 model, and a square
CHUNKS: dict[str, Callable[[int], dict[str, Tensor]]] = {
    "gated_delta_net": delta_inputs,
    "kimi_delta_attention": partial(delta_inputs, channel=True),
    "mamba2": mamba2_inputs,
}
AT_LEAST, TRIES = 0.95, 5


def choice_table() -> list[tuple[str, str]]:
    """What is timed at the sizes of published models, and the call that was chosen with the times of all."""
    for rows, width in WEIGHTS:
        linear.best_product(rows, width, torch.float32)
    found = [("float32 products", products.explanation())]
    with torch.no_grad():
        for name, make in CHUNKS.items():
            RULES[name](**make(64))
    return found + [(choice.what, str(choice)) for choice in choices.choices()]


def choice_rows(quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Each choice as callers meet it beside the plain call. Raises BenchmarkError where it is slower by over 5 %."""
    weights = WEIGHTS[-1:] if quick else WEIGHTS
    with torch.no_grad():
        rows = [_held(partial(_one_row, *weight, rounds)) for weight in weights]
        return rows + [_held(partial(_chunks, name, 128 if quick else 1024, rounds)) for name in CHUNKS]


def _held(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The best of several measurements: a busy machine can spoil one, but does not make a call faster."""
    for _ in range(TRIES):
        row = measure()
        if row["ratio"] >= AT_LEAST:
            return row
    raise BenchmarkError(
        f"{row['case']} ({row['shape']}): the choice takes {1 / row['ratio']:.2f} times as long as {row['peer']}"
    )


def _one_row(rows: int, width: int, rounds: int) -> dict[str, Any]:
    module, x = nn.Linear(width, rows, bias=False), torch.linspace(-1, 1, width).view(1, 1, -1)
    row = {"case": "one row", "shape": f"weight {rows} x {width}", "pass": "forward", "peer": "F.linear"}
    ours, theirs = partial(project, module, x), partial(module, x)
    works = {"ours": partial(_again, ours), "theirs": partial(_again, theirs)}
    return side_by_side(row, [(ours(), theirs())], works, 3 * rounds, count=20)


def _chunks(name: str, length: int, rounds: int) -> dict[str, Any]:
    given = CHUNKS[name](length)
    row = {"case": f"{name} products", "shape": f"T={length}", "pass": "forward", "peer": products.PLAIN}

    def ours() -> Tensor:
        return RULES[name](**given).o

    def theirs() -> Tensor:
        """A setting that the caller has chosen is left alone, and this one is for torch's own library."""
        matmul = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 (torch's types do not know it)
        before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
        try:
            return ours()
        finally:
            matmul.fp32_precision = before

    return side_by_side(row, [(ours(), theirs())], {"ours": ours, "theirs": theirs}, 2 * rounds)


def _again(work: Callable[[], object]) -> None:
    for _ in range(20):
        work()
