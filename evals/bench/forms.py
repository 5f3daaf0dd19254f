"""Every rule's chunkwise form beside its recurrent form, the plain loop over tokens: forward and forward + backward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from linrec.evals.bench.measure import Work, gradients, side_by_side
from linrec.rule import Rule
from linrec.rules import RULES
from linrec.testing import example_inputs

if TYPE_CHECKING:
    from rich.table import Table

Rows = list[dict[str, Any]]

LENGTHS = (128, 256)
PASSES = ("forward", "forward + backward")
HEADS = {"B": 1, "H": 4, "HV": 4, "HQ": 4, "G": 2}
WIDTHS = {"K": 64, "V": 64, "P": 64, "M": 64, "J": 32, "E": 64}  # of keys, values, memories, slots, angles
CHANNELS = {"D": 64, "N": 64}  # of rules without heads: channels, and states a channel
SHAPE: dict[str, Any] = HEADS | WIDTHS | CHANNELS


def form_rows(lengths: Sequence[int], rounds: int, names: Iterable[str] = ()) -> Rows:
    """A row for each rule with both forms (of these names; none: all), length and pass; results compared first."""
    asked = set(names) or set(RULES)
    both = [r for r in RULES.values() if r.name in asked and not {"chunkwise", "recurrent"} & set(r.reasons)]
    return [_row(rule, length, name, rounds) for rule in both for length in lengths for name in PASSES]


def _row(rule: Rule, length: int, name: str, rounds: int) -> dict[str, Any]:
    inputs = list(settled_inputs(rule, length).values())

    def forward(form: str) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (rule.form(form)(*inputs).o,)

    def both(form: str) -> tuple[Tensor, ...]:
        return gradients(lambda *x: rule.form(form)(*x).o, inputs)

    work = forward if name == "forward" else both
    row = {"case": rule.name, "length": length, "pass": name, "peer": "its recurrent form"}
    works: dict[str, Work] = {"ours": partial(work, "chunkwise"), "theirs": partial(work, "recurrent")}
    results = zip(work("chunkwise"), work("recurrent"), strict=True)
    return side_by_side(row, results, works, rounds)


def settled_inputs(rule: Rule, length: int) -> dict[str, Tensor]:
    """Example inputs of ``SHAPE``, float32; weights of networks as initialised, or learning on them would diverge."""
    inputs = example_inputs(rule, T=length, dtype=torch.float32, **SHAPE)
    for name, x in inputs.items():
        if x.dim() > 2 and not rule.arguments[name].carries_tokens:
            inputs[name] = x / x.shape[-2] ** 0.5
    return inputs


def form_table(rows: Rows) -> Table:
    """A line a rule: milliseconds of the chunkwise form, and how many times faster it is than the loop."""
    from rich import box
    from rich.table import Table

    columns = list(dict.fromkeys((row["length"], row["pass"]) for row in rows))
    of_rule: dict[str, list[str]] = {}
    for row in rows:
        times = f"{row['ratio']:.1f}" if row["ratio"] < 10 else f"{row['ratio']:.0f}"
        of_rule.setdefault(row["case"], []).append(f"{1e3 * row['seconds']:.2f} ({times})")
    shape = ", ".join(f"{name}={size}" for name, size in SHAPE.items())
    made = Table(
        box=box.SIMPLE,
        pad_edge=False,
        title=f"chunkwise form, milliseconds (times faster than the loop)\n{shape}",
    )
    made.add_column("rule", no_wrap=True)
    for length, name in columns:
        made.add_column(f"T={length}\n{name.removeprefix('forward ')}", justify="right", no_wrap=True)
    for rule, cells in of_rule.items():
        made.add_row(rule, *cells)
    return made


def form_remarks(rows: Rows) -> list[str]:
    """For each length and pass: in how many rules the chunkwise form is faster, and in which it is not."""
    lines = []
    for length, name in dict.fromkeys((row["length"], row["pass"]) for row in rows):
        here = [row for row in rows if (row["length"], row["pass"]) == (length, name)]
        slow = [f"{row['case']} {row['ratio']:.2f}" for row in here if row["ratio"] < 1]
        slower = f"; slower: {', '.join(slow)}" if slow else ""
        count = f"{len(here) - len(slow)} of {len(here)}"
        lines.append(f"T={length}, {name}: chunkwise beats the loop in {count} rules{slower}")
    return lines
