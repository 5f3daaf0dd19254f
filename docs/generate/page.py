"""The page of one rule, and the overview of all."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict

from docs.generate.docstrings import to_markdown
from docs.generate.example import example
from docs.generate.facts import family, floats, layer_of, state_tensors, summary
from docs.generate.forms import derivation
from docs.generate.identities import identities_of
from docs.generate.latex import display
from docs.generate.picture import mixing
from linrec.arguments import DOMAINS
from linrec.rule import FORMS, Rule
from linrec.rules import RULES

DRAWN = {"unit": "unit norm", "strength": "a strength, drawn from (0, 1)", "rate": "a small learning rate"}
ORDER = (
    "Additive: linear attention",
    "Delta rules and regression",
    "Elementwise recurrences and state spaces",
    "Softmax attention and its feedback",
    "Test-time training",
    "Short convolutions",
)


def families() -> dict[str, list[Rule]]:
    """The rules by family, both in the order of the navigation."""
    found: dict[str, list[Rule]] = defaultdict(list)
    for _, rule in sorted(RULES.items()):
        found[family(rule)].append(rule)
    return {name: found[name] for name in (*ORDER, *sorted(found.keys() - set(ORDER))) if found[name]}


def rule_page(rule: Rule) -> str:
    """Markdown."""
    parts = [
        f"# {rule.name}",
        f"{summary(rule)}. {_published(rule)}",
        f"$$\n{display(rule.equation)}\n$$",
        _picture(rule),
        "## What it computes",
        _linked(to_markdown(inspect.getdoc(rule.lower) or ""), rule),
        "## Arguments",
        _arguments(rule),
        "## Its forms",
        derivation(rule),
        "## State",
        _state(rule),
        "## Limits and identities",
        _limits(rule),
        "## Example",
        "The blocks run in order; the test suite runs them.",
        *(f"### {heading}\n\n```python\n{code.strip()}\n```" for heading, code in example(rule)),
    ]
    return "\n\n".join(parts) + "\n"


def overview() -> str:
    """Every rule with its equation, by family."""
    parts = [
        "# Rules",
        "Each mechanism is one equation in one file; its page is made of that file. The families follow from the "
        "engine and from what the rule lowers to it. $T$ among the state floats means that the state grows.",
    ]
    for name, rules in families().items():
        rows = [
            f"| [{r.name}]({r.name}.md) | {summary(r)} | {_expression(r)} | {_missing(r)} |" for r in rules
        ]
        head = "| rule | what it is | state floats a head | forms it lacks |\n| --- | --- | --- | --- |"
        parts += [f"## {name}", "\n".join([head, *rows])]
    return "\n\n".join(parts) + "\n"


def _missing(rule: Rule) -> str:
    return ", ".join(rule.reasons) or "none"


def _published(rule: Rule) -> str:
    cite = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", rule.cite)
    layer = layer_of(rule)
    text = f"Published: {cite}. Engine: {rule.engine.name}."
    if layer is None:
        return text
    home = layer.__module__.rsplit(".", 1)[-1]
    return f"{text} Layer: [`{layer.__name__}`](../layers/{home}.md#{layer.__module__}.{layer.__name__})."


def _picture(rule: Rule) -> str:
    return (
        f"![The matrix of {rule.name}]({rule.name}.png){{ .matrix }}\n\n"
        f"*The matrix it multiplies by, measured on 48 tokens that return to four topics: {mixing(rule).meaning}. "
        "The shade is the root of the entry.*"
    )


def _linked(text: str, rule: Rule) -> str:
    """Names of rules in the docstring lead to their pages."""

    def link(found: re.Match[str]) -> str:
        name = found[1].rsplit(".", 1)[-1]
        return f"[`{name}`]({name}.md)" if name in RULES and name != rule.name else found[0]

    return re.sub(r"`([\w.]+)`", link, text)


def _arguments(rule: Rule) -> str:
    signature = inspect.signature(rule.lower)
    rows = ["| argument | shape | domain | default |", "| --- | --- | --- | --- |"]
    for name, parameter in signature.parameters.items():
        default = "" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
        arg = rule.arguments.get(name)
        shape = "a number or a choice" if arg is None else f"`{arg}`".replace(" or ", "` or `")
        domain = "" if arg is None else DRAWN.get(arg.draw, DOMAINS[arg.draw][0])
        rows.append(f"| `{name}` | {shape} | {domain} | {default} |")
    return "\n".join(rows) + (
        f"\n\nBesides, every rule takes `state`, `scale` (default {_scale(rule)}), `cu_seqlens`, `chunk_size` and "
        "`backend`. Shapes are in [the legend's](../api/legend.md) letters. Domains are checked inside "
        "`linrec.rule.validation()`, which raises `RangeError`; shapes and dtypes always."
    )


def _scale(rule: Rule) -> str:
    return "$K^{-1/2}$" if rule.default_scale != "1" else "1"


def _expression(rule: Rule) -> str:
    return f"${rule.state_floats.replace('*', ' ')}$"


def _state(rule: Rule) -> str:
    number, sizes = floats(rule)
    given = ", ".join(f"{n} = {size}" for n, size in sizes.items())
    grows = " It **grows with the tokens**; the number is that for $T$ of them." if rule.grows else ""
    unit = (
        "channel"
        if not {"H", "HV", "HQ"} & {d for a in rule.arguments.values() for d in a.shapes[0]}
        else "head"
    )
    rows = ["| tensor | shape in the example | dtype |", "| --- | --- | --- |"]
    rows += [
        f"| `{path or 'state'}` | `{list(shape)}` | {dtype} |" for path, shape, dtype in state_tensors(rule)
    ]
    example = f" With {given} that is {4 * number:,.0f} bytes in float32." if sizes else ""
    return (
        f"{_expression(rule)} floats a {unit}.{example}{grows}\n\n"
        + "\n".join(rows)
        + (
            "\n\nThe example's tensors are float64, and so is its state. The first dimension is the batch, or "
            "the packed segments. A state is never changed in place unless it is given away."
        )
    )


def _limits(rule: Rule) -> str:
    parts = [
        f"* There is no **{form}** form: {rule.reasons[form]}." for form in FORMS if form in rule.reasons
    ]
    for identity in identities_of(rule.name):
        others = [identity.rule] if identity.rule != rule.name else sorted(identity.rules - {rule.name})
        subject = f"[`{identity.rule}`]({identity.rule}.md): " if identity.rule != rule.name else ""
        links = ", ".join(f"[`{name}`]({name}.md)" for name in others if not subject)
        code = "\n".join([*identity.given.splitlines(), f"{identity.left}\n    == {identity.right}"])
        lines = "\n".join(f"    {line}" for line in ["```text", *code.splitlines(), "```"])
        parts.append(f"* {subject}{identity.says}{f' See {links}.' if links else ''}\n\n{lines}\n")
    if not parts:
        return "Every form exists; no identity with another rule is listed."
    return "\n".join(parts) + (
        "\n\nThe identities hold to rounding; the test suite checks each on example inputs in float64."
        if identities_of(rule.name)
        else ""
    )
