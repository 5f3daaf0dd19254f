"""What the registry, the lowering and the source say about a rule; nothing is written down a second time."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

from torch import Tensor

from docs.generate.docstrings import to_markdown
from linrec.layers import LAYERS
from linrec.rule import Rule
from linrec.rules import RULES
from linrec.state import named_tensors
from linrec.testing import SIZES, example_inputs

LENGTH = 32  # tokens of the examples
EXAMPLE = {"K": 64, "V": 64, "P": 64, "N": 64, "H": 16, "HV": 16, "C": 512, "R": 2, "RV": 2, "M": 64, "L": 16}
EXAMPLE |= {"W": 4, "D": 1024, "T": 4096}


class EngineCall(NamedTuple):
    """One call of an engine: the class of its terms, and their tensors' shapes and other choices by name."""

    terms: Any
    shapes: dict[str, tuple[int, ...]]
    choices: dict[str, str]


def module_of(rule: Rule) -> ModuleType:
    """The file that the rule stands in."""
    return importlib.import_module(rule.lower.__module__)


def summary(rule: Rule) -> str:
    """The first line of the rule's file."""
    return (inspect.getdoc(module_of(rule)) or rule.name).splitlines()[0].rstrip(".")


def layer_of(rule: Rule) -> type | None:
    """The layer that wraps the rule."""
    return next((layer for layer in LAYERS.values() if getattr(layer, "rule", None) is rule), None)


def inputs_of(rule: Rule, **sizes: int) -> dict[str, Tensor]:
    """Example inputs of ``LENGTH`` tokens."""
    return example_inputs(rule, **{"T": LENGTH, **sizes})  # type: ignore[arg-type]


@cache
def lowered(rule: Rule) -> Any:
    """The terms of the example inputs."""
    return rule.lower(**inputs_of(rule))


@cache
def engine_calls(rule: Rule) -> list[EngineCall]:
    """The calls of the matrix engine: the rule's own, or those that its program makes."""
    terms = lowered(rule)
    matrix = RULES["gla"].engine
    if rule.engine is matrix:
        return [_call(terms)]
    seen: list[EngineCall] = []
    run = matrix.run

    def recorded(terms: Any, *rest: Any) -> Any:
        seen.append(_call(terms))
        return run(terms, *rest)

    with mock.patch.object(type(matrix), "run", staticmethod(recorded)):
        rule(**inputs_of(rule))
    return list({str((c.shapes, c.choices)): c for c in seen}.values())


def _call(terms: Any) -> EngineCall:
    values = {f.name: getattr(terms, f.name) for f in fields(terms)}
    shapes = {n: tuple(x.shape) for n, x in values.items() if isinstance(x, Tensor)}
    return EngineCall(terms, shapes, {n: x for n, x in values.items() if isinstance(x, str)})


def family(rule: Rule) -> str:
    """The heading under which a rule stands, from its engine and from what is lowered to it."""
    by_engine = {
        "diagonal": "Elementwise recurrences and state spaces",
        "wkv": "Elementwise recurrences and state spaces",
        "cell": "Elementwise recurrences and state spaces",
        "fastweight": "Test-time training",
        "convolution": "Short convolutions",
    }
    if rule.engine.name in by_engine:
        return by_engine[rule.engine.name]
    if rule.engine.name.startswith("attention"):
        return "Softmax attention and its feedback"
    erases = any("a" in call.shapes or "erase" in call.shapes for call in engine_calls(rule))
    unit = any(arg.draw == "unit" for arg in rule.arguments.values())
    return "Delta rules and regression" if erases or unit else "Additive: linear attention"


def state_tensors(rule: Rule) -> list[tuple[str, tuple[int, ...], str]]:
    """Path, shape and dtype of every tensor of the empty state of the example inputs."""
    state = rule.init_state(**inputs_of(rule))
    return [(path, tuple(x.shape), str(x.dtype).removeprefix("torch.")) for path, x in named_tensors(state)]


def floats(rule: Rule) -> tuple[float, dict[str, int]]:
    """The state's floats for the sizes of ``EXAMPLE``, and those sizes that count."""
    tree = ast.parse(rule.state_floats, mode="eval")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    sizes = {name: EXAMPLE.get(name, SIZES.get(name, 1)) for name in sorted(names)}
    return float(eval(compile(tree, rule.name, "eval"), {"__builtins__": {}}, sizes)), sizes


def lowering_source(rule: Rule) -> str:
    """The lowering function without its docstring, and the functions of rules that it calls."""
    found: dict[tuple[str, str], str] = {}
    _collect(rule.lower, found)
    return "\n\n\n".join(found.values())


def _collect(function: Any, found: dict[tuple[str, str], str]) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    tree.decorator_list = []
    found[function.__module__, function.__qualname__] = _without_docstring(function, tree)
    scope = inspect.unwrap(function).__globals__
    for node in ast.walk(tree):
        other = scope.get(node.id) if isinstance(node, ast.Name) else None
        ours = inspect.isfunction(other) and other.__module__.startswith("linrec.rules")
        if other is not None and ours and (other.__module__, other.__qualname__) not in found:
            _collect(other, found)


def _without_docstring(function: Any, tree: ast.FunctionDef) -> str:
    """The source as it is written, comments included, less decorators and docstring."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    first = tree.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    skipped = range(first.lineno - 1, first.end_lineno or first.lineno) if documented else range(0)
    kept = [line for n, line in enumerate(lines) if n >= tree.lineno - 1 and n not in skipped]
    while len(kept) > 1 and not kept[-1].strip():
        kept.pop()
    return "\n".join(line for n, line in enumerate(kept) if line.strip() or n > len(_signature(kept)))


def _signature(lines: list[str]) -> list[str]:
    end = next((n for n, line in enumerate(lines) if line.rstrip().endswith(":")), 0)
    return lines[: end + 1]


ENGINES = ("linrec.engines.matrix", "linrec.engines.programs.program")


def drivers(rule: Rule) -> Iterator[tuple[str, str]]:
    """(module, docstring as Markdown) of what the rule's functions use between a program and the matrix engine."""
    found: dict[tuple[str, str], str] = {}
    _collect(rule.lower, found)
    homes = {home for home, _ in found}
    seen: set[str] = set()
    for home in sorted(homes):
        for node in ast.parse(inspect.getsource(importlib.import_module(home))).body:
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith("linrec.engines") and module not in (*ENGINES, *seen):
                seen.add(module)
                yield module, to_markdown(inspect.getdoc(importlib.import_module(module)) or "")
