"""What computes each mixer of a model."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from linrec.integrations.transformers.patching import is_accelerated
from linrec.integrations.transformers.replacement import Place, limits, places


class Row(NamedTuple):
    """A mixer: its name in the model, its class, what computed it before, what does now, or why it was left."""

    module: str
    kind: str
    before: str
    rule: str
    algorithm: str
    left: str


def rows(model: nn.Module) -> list[Row]:
    """One for every mixer that linrec could compute, and for other parts that linrec knows to be wrong somewhere."""
    found = []
    for name, module in model.named_modules():
        kind = type(module)
        if places(kind):
            found.append(_row(name, module, places(kind)))
        elif kind.__name__ in limits():
            found.append(Row(name, kind.__name__, "transformers", "", "", limits()[kind.__name__]))
    return found


def _row(name: str, module: nn.Module, found: tuple[Place, ...]) -> Row:
    before = ", ".join(sorted({place.title for place in found}))
    problems = [place.problem for place in found if place.problem]
    if problems or not is_accelerated(module):
        return Row(name, type(module).__name__, before, "", "", "; ".join(problems) or "not accelerated")
    rules = sorted({place.replacement.rule for place in found} - {""})
    algorithms = sorted({place.replacement.algorithm for place in found} - {""})
    return Row(name, type(module).__name__, before, ", ".join(rules), ", ".join(algorithms), "")


def report(model: nn.Module) -> list[Row]:
    """Print, and return, a table of a model's mixers: what computed each before, rule and algorithm now, or why it was
    left."""
    table = rows(model)
    if not table:
        print(f"{type(model).__name__}: nothing in it that linrec computes")
        return table
    lines = [Row._fields, *table]
    widths = [max(len(line[i]) for line in lines) for i in range(len(Row._fields))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return table
