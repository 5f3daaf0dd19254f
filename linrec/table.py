"""The support table: one row a rule, computed from the registry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from linrec.rule import FORMS, Choice, Rule, get_rule
from linrec.rules import RULES
from linrec.testing import example_inputs

COLUMNS = ("rule", "equation", "citation", "engine", *FORMS, "state floats per head")


def rows(names: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """The table's rows, in the order of COLUMNS, of these rules (none: of all); UnknownNameError."""
    return [_row(get_rule(name)) for name in names or sorted(RULES)]


def _row(rule: Rule) -> tuple[str, ...]:
    forms = tuple("yes" if f not in rule.reasons else f"no: {rule.reasons[f]}" for f in FORMS)
    state = rule.state_floats.replace("*", "·") + (" (grows)" if rule.grows else "")
    return (rule.name, rule.equation, rule.cite, rule.engine.name, *forms, state)


def support_table() -> str:
    """The table in markdown; the README holds exactly this."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows()]
    return "\n".join(lines) + "\n"


def explanation(device: str, names: Sequence[str] = ()) -> list[tuple[str, str, str, str]]:
    """For each form of these rules (none: of all), called on this device: rule, form, algorithm and the reason."""
    chosen = [get_rule(name) for name in names or sorted(RULES)]
    return [(rule.name, call, *choice) for rule in chosen for call, choice in _choices(rule, device)]


def _choices(rule: Rule, device: str) -> Iterator[tuple[str, Choice]]:
    several = example_inputs(rule, device=device, dtype=torch.float32)
    one = example_inputs(rule, device=device, dtype=torch.float32, T=1)
    for form in FORMS:
        if form not in rule.reasons:
            yield form, rule.explain(form, **(one if form == "step" else several))
    if hasattr(rule.engine, "algorithms") and "chunkwise" not in rule.reasons:
        found: list[Choice] = []

        def note(*values: Tensor) -> Tensor:
            found.append(rule.explain("chunkwise", **dict(zip(several, values, strict=True))))
            return values[0]

        torch.vmap(note)(*(x[None] for x in several.values()))
        yield "chunkwise, in torch.vmap", found[0]
