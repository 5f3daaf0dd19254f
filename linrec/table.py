"""The support table: one row a rule, computed from the registry."""

from __future__ import annotations

from linrec.rule import FORMS, Rule
from linrec.rules import RULES

COLUMNS = ("rule", "equation", "citation", "engine", *FORMS, "state floats per head")


def rows() -> list[tuple[str, ...]]:
    """The table's rows, in the order of COLUMNS."""
    return [_row(r) for _, r in sorted(RULES.items())]


def _row(rule: Rule) -> tuple[str, ...]:
    forms = tuple("yes" if f not in rule.reasons else f"no: {rule.reasons[f]}" for f in FORMS)
    state = rule.state_floats.replace("*", "·") + (" (grows)" if rule.grows else "")
    return (rule.name, rule.equation, rule.cite, rule.engine.name, *forms, state)


def support_table() -> str:
    """The table in markdown; the README holds exactly this."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows()]
    return "\n".join(lines) + "\n"


def explanation(device: str) -> list[tuple[str, str]]:
    """For each rule, what ``backend="auto"`` chooses for tensors on this device."""
    return [(name, r.engine.auto_backend(device)) for name, r in sorted(RULES.items())]
