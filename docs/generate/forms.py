"""How a rule's forms follow from its engine: the text of docs/forms, chosen by what the rule lowers to.

A file of docs/forms is named after the class of the terms (or a base class of it); the matrix engine has one for each
of its three kinds. Its sections are named after the forms.
"""

from __future__ import annotations

import re
from pathlib import Path

from docs.generate.facts import EngineCall, drivers, engine_calls, lowered, lowering_source
from linrec.rule import Rule

FORMS = Path(__file__).resolve().parents[1] / "forms"
TITLES = ("Parallel", "Chunkwise", "Recurrent")
STEP = """\
#### Step

The recurrent form for one token: `step` takes it with or without its time axis, and gives the next state.
"""


def derivation(rule: Rule) -> str:
    """Markdown: the lowering, what it lowers to, and each form with its derivation or the reason why there is none."""
    parts = [
        "### From the rule to its engine",
        f"The lowering is pointwise in time, so that the forms of the engine are forms of the rule "
        f"(`{rule.lower.__module__}`):",
        f"```python\n{lowering_source(rule)}\n```",
    ]
    kind = type(lowered(rule)).__name__
    if kind == "MatrixTerms":
        (call,) = engine_calls(rule)
        parts += [_terms(call), _matrix(rule, call)]
    else:
        parts += [_sections(rule, _file_of(rule)), *_program(rule)]
    return "\n\n".join(parts)


def _file_of(rule: Rule) -> Path:
    terms = lowered(rule)
    for base in type(terms).__mro__:
        if (path := FORMS / f"{base.__name__}.md").exists():
            return path
    raise FileNotFoundError(
        f"{rule.name}: no derivation for {type(terms).__name__}; write docs/forms/{type(terms).__name__}.md"
    )


def _matrix(rule: Rule, call: EngineCall) -> str:
    text = _sections(rule, FORMS / f"{matrix_kind(call)}.md")
    extra = (
        [] if "g" not in call.shapes else ["channel_decay" if len(call.shapes["g"]) == 4 else "head_decay"]
    )
    extra += ["readout_before"] if call.choices.get("readout") == "pre" else []
    notes = [(FORMS / f"{name}.md").read_text(encoding="utf-8").strip() for name in extra]
    return "\n\n".join([text, *(["#### In this rule", *notes] if notes else [])])


def matrix_kind(call: EngineCall) -> str:
    """``additive``, ``delta`` or ``general``."""
    if "b" in call.shapes:
        return "general"
    return "delta" if "a" in call.shapes or "erase" in call.shapes else "additive"


def _terms(call: EngineCall) -> str:
    """What the example lowers to, in a sentence."""
    tensors = ", ".join(f"{name} `{list(shape)}`" for name, shape in call.shapes.items())
    kind = matrix_kind(call)
    reads = f"; the prediction reads the {call.choices['predict']} state" if kind == "delta" else ""
    return f"With the sizes of the example below these are, for the engine's **{kind}** recurrence: {tensors}{reads}."


def _sections(rule: Rule, path: Path) -> str:
    """The file with its sections one level down, in the order of the rule's methods."""
    text = path.read_text(encoding="utf-8").strip()
    text = text.replace("{parallel}", str(getattr(lowered(rule), "parallel", "")))
    intro, *rest = re.split(r"^### (.+)$", text, flags=re.M)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    parts = [intro.strip()]
    for title in ("Recurrent", "Parallel", "Chunkwise", *sections.keys() - set(TITLES)):
        reason = rule.reasons.get(title.lower())
        body = sections[title].strip() if reason is None else f"This form does not exist: {reason}."
        parts.append(f"#### {title}\n\n{body}")
    return "\n\n".join([*parts, STEP.strip()])


def _program(rule: Rule) -> list[str]:
    """The engines inside a program: the kinds of its matrix calls, and what its drivers say of themselves."""
    if type(lowered(rule)).__name__ != "ProgramTerms":
        return []
    parts = []
    said = [(name, text) for name, text in drivers(rule) if text]
    if said:
        parts.append("#### What it is made of")
    for name, text in said:
        parts.append(f"`{name}`: {text}")
    calls = engine_calls(rule)
    if calls:
        parts.append("#### The matrix engine inside")
    parts += [_terms(call) for call in calls]
    for call in {matrix_kind(c): c for c in calls}.values():
        parts.append(_deeper(_matrix(rule, call)))
    return parts


def _deeper(text: str) -> str:
    without = text.replace(STEP.strip(), "")
    return re.sub(r"^#### ", "##### ", without, flags=re.M)
