"""Every public function of tensors says their shapes.

A parameter that is annotated as a plain ``Tensor`` has its shape in a docstring: the function's, its class's, its
module's, or that of a method that it overrides and its class. These are ways to say it:

    q, k ``[B, T, H, K]``    ``mask [B, T]``    ``[M, K], [K, N] -> [M, N]``    ``B T (H K) -> B T H K``    dx like x

where an arrow has a shape on its left for each tensor, ``[...]`` is any shape, and ``like`` names a parameter whose
shape is said. A parameter with a kind of the legend (``Query``, ``Decay``) says it by that.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.source import python_files, relative

FOLDERS = ("linrec", "kernels", "models", "evals")
SAID_BY_THE_LEGEND = ("cu_seqlens", "attention_mask")  # the same wherever they go
NOT_YET = ("linrec/engines/matrix/", "kernels/matrix/")
QUOTED = re.compile(r"``([^`]*)``")
SHAPE = re.compile(r"(?P<names>[\w, ]*?)\s*(?P<shape>\[[^\]]*\].*)", re.S)


class Function(NamedTuple):
    """A public function or method, with all docstrings that may speak of its parameters."""

    where: str
    node: ast.FunctionDef
    docstrings: list[str]

    @property
    def tensors(self) -> list[str]:
        """Those that are plain tensors, and whose shape is not the same everywhere."""
        found = [p.arg for p in parameters(self.node) if is_tensor(p.annotation)]
        return [name for name in found if name not in SAID_BY_THE_LEGEND]


def parameters(node: ast.FunctionDef) -> list[ast.arg]:
    """Positional or by name, without ``*args``."""
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def is_tensor(annotation: ast.expr | None) -> bool:
    """``Tensor``, or a union with it; no container of tensors, whose shapes differ."""
    parts = [] if annotation is None else ast.unparse(annotation).split(" | ")
    return bool({"Tensor", "torch.Tensor"} & set(parts))


def functions(sources: dict[str, str]) -> Iterator[Function]:
    """The public functions of files (name to text), and the methods of their public classes."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    classes = {
        node.name: node for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)
    }
    for name, tree in trees.items():
        for node, above in within(tree, classes):
            first = parameters(node)[0].arg if parameters(node) else ""
            if (
                not node.name.startswith("_") and first != "ctx"
            ):  # of an autograd.Function, called through another
                said = [ast.get_docstring(each) or "" for each in (node, tree, *above)]
                yield Function(f"{name}:{node.lineno} {node.name}", node, said)


def within(
    tree: ast.Module, classes: dict[str, ast.ClassDef]
) -> Iterator[tuple[ast.FunctionDef, list[ast.ClassDef | ast.FunctionDef]]]:
    """Functions and methods, with the class of a method and the methods that it overrides."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node, []
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    yield method, [node, *overridden(method.name, node, classes)]


def overridden(
    name: str, of: ast.ClassDef, classes: dict[str, ast.ClassDef]
) -> list[ast.ClassDef | ast.FunctionDef]:
    """The methods of this name in the classes that a class is derived from, and those classes."""
    found: list[ast.ClassDef | ast.FunctionDef] = []
    for base in of.bases:
        parent = classes.get(ast.unparse(base).split("[")[0].split(".")[-1])
        if parent is not None and parent is not of:
            same = [m for m in parent.body if isinstance(m, ast.FunctionDef) and m.name == name]
            found += [*same, parent] if same else []
            found += overridden(name, parent, classes)
    return found


def silent(function: Function) -> list[str]:
    """The tensors whose shapes none of the docstrings says."""
    text = "\n\n".join(function.docstrings)
    if len(function.tensors) in [arrow_inputs(quoted) for quoted in QUOTED.findall(text)]:
        return []
    marked = QUOTED.sub(_marked, text)
    listed = r"(?:\s*(?:,|\band\b|\bor\b)\s*\w+)*\s*:?\s*"

    def said(name: str, rest: list[str]) -> bool:
        this = rf"(?<![\w.]){re.escape(name)}\b{listed}"
        if re.search(this + "⟦", marked):
            return True
        others = re.findall(rf"{this}\blike\s+(\w+)", marked)
        return any(said(other, [*rest, other]) for other in others if other not in rest)

    return [name for name in function.tensors if not said(name, [name])]


def arrow_inputs(quoted: str) -> int | None:
    """How many shapes stand left of an arrow, in brackets or as einops writes them; None where there is no arrow."""
    left, arrow, _ = quoted.partition("->")
    if not arrow:
        return None
    if "[" in left:
        return left.count("[")
    return len(left.split(",")) if re.fullmatch(r"[\w\s,.]*(?:(?<!\w)\([\w\s.]+\)[\w\s,.]*)*", left) else None


def _marked(quoted: re.Match[str]) -> str:
    """Shapes between double brackets, without backticks: ``x [B, T]`` and x ``[B, T]`` become the same."""
    shape = SHAPE.fullmatch(quoted[1])
    return quoted[1] if shape is None else f"{shape['names']} ⟦{shape['shape']}⟧"


def missing(sources: dict[str, str]) -> list[str]:
    """One line for each function that says too little."""
    found = [(function.where, silent(function)) for function in functions(sources)]
    return [f"{where}: {', '.join(names)}" for where, names in found if names]


def test_every_public_function_says_the_shapes_of_its_tensors() -> None:
    sources = {relative(path): path.read_text(encoding="utf-8") for path in python_files(*FOLDERS)}
    assert sum(bool(function.tensors) for function in functions(sources)) > 300
    found = missing(sources)
    wrong = [line for line in found if not line.startswith(NOT_YET)]
    assert not wrong, "the docstring does not say the shapes of\n" + "\n".join(wrong)
    assert all(any(line.startswith(place) for line in found) for place in NOT_YET), "said by now: take it out"


def file(docstring: str, arguments: str, module: str = "") -> str:
    return f'"""{module}"""\ndef f({arguments}):\n    """{docstring}"""\n'


@pytest.mark.parametrize(
    ("docstring", "arguments"),
    [
        ("x ``[B, T]`` doubled.", "x: Tensor"),
        ("``x [B, T]`` doubled.", "x: Tensor"),
        ("``x`` ``[B, T]``", "x: Tensor | None = None"),
        ("q, k ``[B, T, H, K]`` and v ``[B, T, HV, V]``", "q: Tensor, k: Tensor, v: Tensor"),
        ("``q``, ``k`` or ``v``: ``[B, T, H, K]``", "q: Tensor, k: Tensor, v: Tensor"),
        ("``[M, K], [K, N] -> [M, N]``", "a: Tensor, b: Tensor"),
        ("``B T (H K) -> B T H K`` for heads", "x: Tensor, heads: int"),
        ("dx like x, which is ``[...]``; x ``[...]``", "x: torch.Tensor, dx: torch.Tensor"),
        ("dx like dy, dy like x, x ``[B]``", "x: Tensor, dx: Tensor, dy: Tensor"),
        ("Nothing to say.", "q: Query, rows: list[Tensor], n: int"),
    ],
)
def test_what_says_a_shape(docstring: str, arguments: str) -> None:
    assert missing({"f.py": file(docstring, arguments)}) == []
    assert missing({"f.py": file("Said above.", arguments, module=docstring)}) == []


@pytest.mark.parametrize(
    ("docstring", "arguments", "silent"),
    [
        ("Doubles x.", "x: Tensor", "x"),
        ("x, which is [B, T].", "x: Tensor", "x"),
        ("A row ``[T]`` of a matrix.", "a: Tensor", "a"),
        ("x ``[B, T]``", "x: Tensor, y: Tensor, *, z: Tensor | None", "y, z"),
        ("x times the weight ``[D]``", "x: Tensor", "x"),
        ("``[M, K] -> [M]``", "a: Tensor, b: Tensor", "a, b"),
        ("``f(x) -> y``", "x: Tensor", "x"),
        ("dx like x", "x: Tensor, dx: Tensor", "x, dx"),
        ("dx like x, x like dx", "x: Tensor, dx: Tensor", "x, dx"),
        ("", "x: Tensor", "x"),
    ],
)
def test_what_does_not_say_a_shape(docstring: str, arguments: str, silent: str) -> None:
    assert missing({"f.py": file(docstring, arguments)}) == [f"f.py:2 f: {silent}"]


CLASSES = """
class Layer:
    '''{layer}'''
    def mix(self, x: Tensor): '''{mix}'''
class Mine(Layer):
    def mix(self, x: Tensor): '''Mine.'''
    def other(self, x: Tensor): '''Another.'''
    def _inside(self, x: Tensor): pass
class _Hidden:
    def f(self, x: Tensor): pass
"""


def test_methods_say_it_for_those_that_override_them() -> None:
    said = "x ``[B, T]``"
    both = ["c.py:6 mix: x", "c.py:7 other: x"]
    assert missing({"c.py": CLASSES.format(layer="", mix="")}) == ["c.py:4 mix: x", *both]
    assert missing({"c.py": CLASSES.format(layer=said, mix="")}) == both[1:]
    assert missing({"c.py": CLASSES.format(layer="", mix=said)}) == both[1:]
