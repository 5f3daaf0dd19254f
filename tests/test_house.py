"""The house keeps its shape: what may import what, between rooms, files and other projects' packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.source import MAPPED, OPTIONAL, ROOT

# A module may import modules of a smaller number, and of its own package. Every module of linrec has a place.
RANK = {
    "errors": 0,
    "state": 1,
    "reading": 1,
    "terminal": 1,
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


def modules() -> dict[str, Path]:
    """Every module of linrec by its dotted name."""
    found = {}
    for top in ("linrec", *MAPPED):
        prefix = () if top == "linrec" else ("linrec",)
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            linked = top == "linrec" and len(parts) > 2 and parts[1] in MAPPED
            if not linked:
                found[".".join((*prefix, *parts)).removesuffix(".__init__")] = path
    return found


def imports_between_files() -> dict[str, set[str]]:
    """Which files each file imports, in functions too; what only types need (TYPE_CHECKING) does not run."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        graph[name] = set()
        for node in ast.walk(running(ast.parse(path.read_text(encoding="utf-8")))):
            if isinstance(node, ast.ImportFrom) and node.module:
                named = [f"{node.module}.{alias.name}" for alias in node.names]
                graph[name] |= {n if n in known else node.module for n in named}
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
        graph[name] = {target for target in graph[name] if target in known and target != name}
    return graph


def running(tree: ast.Module) -> ast.Module:
    """The module without what stands under TYPE_CHECKING."""

    class Runs(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST:
            return ast.Pass() if "TYPE_CHECKING" in ast.unparse(node.test) else node

    return Runs().visit(tree)


def test_no_files_import_each_other_in_a_circle() -> None:
    """Neither at the top nor in functions: what two files need of each other belongs into a third."""
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
    graph = imports_between_files()
    assert sum(map(len, graph.values())) > 500
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


ROOMS = {  # inside a folder too, a room may import rooms of a smaller number
    "linrec.engines": {"numerics": 0, "programs": 2, "": 1},
    "linrec.evals": {
        "records": 0,
        "resume": 1,
        "pages": 1,
        "small": 2,
        "suites": 3,
        "harness": 3,
        "bench": 4,
        "kernels": 5,
        "": 6,
    },
}


def room(folder: str, module: str) -> int:
    """The number of the room that a module of ``folder`` lies in; "" is every other."""
    first = module.removeprefix(folder + ".").split(".")[0]
    return ROOMS[folder].get(first, ROOMS[folder][""])


@pytest.mark.parametrize("folder", ROOMS)
def test_rooms_of_a_folder_import_one_way(folder: str) -> None:
    inside = {
        name: targets for name, targets in imports_between_files().items() if name.startswith(folder + ".")
    }
    assert len(inside) > 20
    wrong = [
        f"{name} imports {target}"
        for name, targets in inside.items()
        for target in targets
        if target.startswith(folder + ".") and room(folder, target) > room(folder, name)
    ]
    assert not wrong, "\n".join(wrong)


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
