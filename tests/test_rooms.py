"""Files import each other in no circle, and the rooms of a folder one way."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.source import MAPPED, ROOT


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
