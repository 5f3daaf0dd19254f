"""A runnable example of every rule: one call, its forms against each other, and a stream of single tokens."""

from __future__ import annotations

import inspect
import textwrap

from docs.generate.facts import LENGTH, inputs_of
from linrec.rule import Rule
from linrec.testing import SIZES

CALL = """\
import torch
from linrec import rules
from linrec.testing import example_inputs, relative_error

inputs = example_inputs(rules.{name}, T={length})  # float64, {sizes}
{unpack} = inputs.values()
output, state = rules.{name}({arguments})
assert output.shape == {out}
"""
FORMS = """\
for form in ({forms}):
    assert relative_error(form(**inputs).o, output) < 1e-10
"""
STREAM = """\
state, outputs = None, []
for t in range({length}):
    now, state = rules.{name}.step(
{arguments}
    )
    outputs.append(now)
assert relative_error(torch.stack(outputs, dim=1), output) < 1e-10
"""


def example(rule: Rule) -> list[tuple[str, str]]:
    """(heading, code) of blocks that run in order, sharing their names."""
    inputs = inputs_of(rule)
    positional = list(rule.arguments) == list(inspect.signature(rule.lower).parameters)[: len(inputs)]
    given = [n if positional else f"{n}={n}" for n in inputs]
    over_time = {n for n, arg in rule.arguments.items() if "T" in arg.shapes[0]}
    tokens = [text + "[:, t]" * (n in over_time) for n, text in zip(inputs, given, strict=True)]
    call = CALL.format(
        name=rule.name,
        length=LENGTH,
        sizes=", ".join(f"{d}={n}" for d, n in sizes(rule).items()),
        unpack=", ".join(inputs) + ("," if len(inputs) == 1 else ""),
        arguments=", ".join(given),
        out=tuple(rule(**inputs).o.shape),
    )
    names = [f'"{f}"' for f in ("parallel", "chunkwise", "recurrent") if f not in rule.reasons]
    forms = FORMS.format(forms=", ".join(names) + ("," if len(names) == 1 else ""))
    forms = forms.replace("form(**inputs)", f"rules.{rule.name}.form(form)(**inputs)")
    arguments = textwrap.indent(textwrap.fill(", ".join([*tokens, "state=state"]), 90), " " * 8)
    stream = STREAM.format(name=rule.name, length=LENGTH, arguments=arguments)
    return [("Call it", call), ("Its forms agree", forms), ("Token by token", stream)]


def sizes(rule: Rule) -> dict[str, int]:
    """The dimensions of the example by the legend's names, in order of appearance."""
    names = [d for arg in rule.arguments.values() for d in arg.shapes[0]]
    return {d: LENGTH if d == "T" else SIZES[d] for d in dict.fromkeys(names)}
