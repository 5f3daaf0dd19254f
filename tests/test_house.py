"""The house keeps its shape: what may import what, between rooms, files and other projects' packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.source import MAPPED, OPTIONAL, ROOT

# A module may import modules of a smaller number, and of its own package. Every module of linrec has a place.
RANK = {
    "errors": 0,
    "state": 1,
    "reading": 1,
    "terminal": 1,
    "sampling": 1,
    "stream_model": 1,
    "files": 1.5,
    "packing": 2,
    "donation": 2,
    "validation": 2,
    "arguments": 2,
    "legend": 2.5,
    "call": 2.5,
    "terms": 2.6,
    "parameters": 2.6,
    "definition": 2,
    "folder": 2,
    "kernels": 2,
    "operators": 2.5,
    "session_file": 2,
    "stream": 4,
    "rule": 3,
    "engines": 4,
    "rules": 5,
    "testing": 6,
    "table": 6.5,
    "layers": 6,
    "integrations": 7,
    "stubs": 7,
    "models": 7,
    "evals": 8,
    "cli": 9,
}


class Import(NamedTuple):
    """One import of a linrec module: by which unit, of which unit, and whether inside a function."""

    unit: str
    target: str
    lazy: bool
    where: str


def source_files() -> Iterator[tuple[str, Path]]:
    """(unit, file) for each module; a unit is a package or a single module directly under linrec."""
    for name in MAPPED:
        yield from ((name, path) for path in sorted((ROOT / name).rglob("*.py")))
    for path in sorted((ROOT / "linrec").glob("*.py")):
        if path.stem != "__init__":
            yield path.stem, path
    for folder in sorted((ROOT / "linrec").iterdir()):
        if folder.is_dir() and not folder.is_symlink():
            yield from ((folder.name, path) for path in sorted(folder.rglob("*.py")))


def walk(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it is left out at import time (in a function, or under TYPE_CHECKING)."""
    for child in ast.iter_child_nodes(node):
        types_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        inside = lazy or types_only or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inside
        yield from walk(child, inside)


def imported_modules(node: ast.AST) -> list[str]:
    """Full dotted names that a statement imports; ``from linrec import rules`` counts as linrec.rules."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        if node.module == "linrec":
            return [f"linrec.{alias.name}" for alias in node.names]
        return [node.module]
    return []


def linrec_imports() -> list[Import]:
    found = []
    for unit, path in source_files():
        for node, lazy in walk(ast.parse(path.read_text(encoding="utf-8"))):
            for module in imported_modules(node):
                parts = module.split(".")
                if parts[0] == "linrec" and len(parts) > 1 and not parts[1].startswith("__"):
                    where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                    found.append(Import(unit, parts[1], lazy, where))
    return found


def test_every_module_has_a_place() -> None:
    units = {unit for unit, _ in source_files()}
    assert units - RANK.keys() == set(), "give the new module a place in RANK"


def test_imports_point_one_way() -> None:
    wrong = [
        found
        for found in linrec_imports()
        if found.unit != found.target and RANK.get(found.target, 99) >= RANK.get(found.unit, 99)
    ]
    assert not wrong, "\n".join(f"{i.where}: {i.unit} imports {i.target}" for i in wrong)


def test_the_import_scan_sees_imports() -> None:
    """The other tests pass on an empty list too; this one does not."""
    found = {(i.unit, i.target) for i in linrec_imports()}
    assert {("rules", "rule"), ("engines", "rule"), ("rule", "errors"), ("engines", "packing")} <= found


def test_only_engines_and_the_kernel_report_import_kernels_and_only_lazily() -> None:
    wrong = [
        found.where
        for found in linrec_imports()
        if found.target == "kernels"
        and found.unit != "kernels"
        and not (found.unit in ("engines", "evals") and found.lazy)
    ]
    assert not wrong, wrong


def test_no_relative_imports_and_no_optional_package_at_import_time() -> None:
    """Only kernels may import triton at the top, and models/huggingface*.py and evals what they are about."""
    about = {"kernels": {"triton"}, "evals": {"lm_eval", "datasets"}}
    wrong = []
    for unit, path in source_files():
        allowed = about.get(unit, set()) | (
            {"transformers"} if path.stem.startswith("huggingface") else set()
        )
        for node, lazy in walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and node.level:
                wrong.append(f"{where}: relative import")
            roots = {module.split(".")[0] for module in imported_modules(node)}
            wrong += [
                f"{where}: {name} at import time" for name in roots & set(OPTIONAL) - allowed if not lazy
            ]
    assert not wrong, "\n".join(wrong)
