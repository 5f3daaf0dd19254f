"""What a rule's own text says of it: citation and equation of its docstring, formulas in the legend's names."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache

from linrec.errors import DefinitionError

CITATION = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")
BLOCK = re.compile(r"^( *)\.\. code-block:: text\n\n((?:\1 +\S.*\n)+)", re.M)
OPERATIONS = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.operator,
    ast.unaryop,
    ast.Name,
    ast.Load,
    ast.Constant,
)


def citation(docstring: str | None, who: str) -> str:
    """The brackets in the first paragraph that hold a year: ``(Author 2024, arXiv:2412.06464)``, without them.

    DefinitionError where there are none. Empty where Python has left docstrings out (``-OO``).
    """
    if sys.flags.optimize > 1:
        return ""
    first, _, _ = (docstring or "").strip().partition("\n\n")
    found = CITATION.search(first)
    if found is None:
        raise DefinitionError(
            f"{who}: the first paragraph of the docstring must say in brackets who published the rule and when, "
            f"such as (Author 2024, arXiv:2412.06464), got {first!r}"
        )
    return " ".join(found[1].split())


def equation(docstring: str | None, who: str) -> str:
    """The lines of the first ``.. code-block:: text``, up to an empty one, as one line: one equation a line, or several
    with a comma and two spaces between them.

    DefinitionError where there is none. Empty where Python has left docstrings out (``-OO``).
    """
    if sys.flags.optimize > 1:
        return ""
    found = BLOCK.search((docstring or "") + "\n")
    if found is None:
        raise DefinitionError(
            f"{who}: the docstring must hold the equation in a block that begins with '.. code-block:: text' and an "
            f"empty line, and is indented; there is none in {docstring!r}"
        )
    lines = (line.strip().removesuffix(",") for line in found[2].splitlines())
    return ",  ".join(lines)


def size_formula(formula: str, known: Collection[str], who: str) -> Callable[[Mapping[str, int]], float]:
    """A formula in names of the legend, such as ``K^-1/2``, ``(K+R)^-1/2`` or ``1``, as a function of the dimensions.

    ``^-1/2`` is the inverse root, ``^`` any other power. A dimension that a call does not have, because the argument
    is left out, counts as 0. DefinitionError for names that are none of ``known`` and for what is no arithmetic.
    """
    names, compute = _compiled(formula)
    if compute is None:
        raise DefinitionError(f"{who}: {formula!r} is no arithmetic with numbers and the legend's names")
    if unknown := sorted(set(names) - set(known)):
        raise DefinitionError(
            f"{who}: {formula!r} has {', '.join(unknown)}, but the dimensions of the arguments are "
            f"{', '.join(sorted(known))}"
        )
    return lambda dims: compute(*[dims.get(name, 0) for name in names])


@lru_cache
def _compiled(formula: str) -> tuple[list[str], Callable[..., float] | None]:
    """The names in a formula and the function of them, a plain one, so that compilers can trace it."""
    text = formula.replace("^-1/2", "**-0.5").replace("^", "**")
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return [], None
    if not all(_is_arithmetic(node) for node in ast.walk(tree)):
        return [], None
    names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    return names, eval(f"lambda {', '.join(names)}: 1.0 * ({text})")


def _is_arithmetic(node: ast.AST) -> bool:
    number = not isinstance(node, ast.Constant) or type(node.value) in (int, float)
    return isinstance(node, OPERATIONS) and number
