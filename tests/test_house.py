"""The house keeps its shape: import directions, packaging, optional packages, the generated table."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("kernels", "models", "evals")  # top-level folders that are installed inside linrec

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

OPTIONAL = ("triton", "fla", "transformers", "lm_eval", "datasets", "matplotlib")


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


def expected_packages() -> set[str]:
    """Package names of the tree: each folder of Python or YAML files under linrec and the mapped folders."""
    tops = {name: ROOT / name for name in ("linrec", *MAPPED)}
    packages = set()
    for name, top in tops.items():
        prefix = ("linrec",) if name == "linrec" else ("linrec", name)
        for folder, subfolders, files in os.walk(top):
            subfolders[:] = [s for s in subfolders if s != "__pycache__" and not Path(folder, s).is_symlink()]
            if any(file.endswith((".py", ".yaml")) for file in files):
                packages.add(".".join((*prefix, *Path(folder).relative_to(top).parts)))
    return packages


def test_package_list_equals_the_tree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == expected_packages()


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_folders_are_linked_and_hide_no_package_of_that_name(name: str, tmp_path: Path) -> None:
    """With the checkout on sys.path another project's ``import kernels`` finds that project's, ahead of our folder."""
    assert (ROOT / "linrec" / name).resolve() == ROOT / name
    theirs = tmp_path / name / "__init__.py"
    theirs.parent.mkdir()
    theirs.write_text("owner = 'another project'")
    code = f"""
import {name}
assert {name}.owner == 'another project'
import linrec.{name} as ours
print(*ours.__path__)
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert ROOT / name in {Path(place).resolve() for place in found.stdout.split()}


COLD_IMPORT = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

BLOCKED = sys.argv[1].split(",")
sys.meta_path.insert(0, Block())

import linrec, linrec.rules, linrec.layers, linrec.models, linrec.cli
import linrec.models.language_model
import torch

assert not set(BLOCKED) & {name.split(".")[0] for name in sys.modules}
q = k = v = torch.nn.functional.normalize(torch.randn(1, 5, 2, 4), dim=-1)
g, beta = torch.full((1, 5, 2), -0.1), torch.full((1, 5, 2), 0.5)
o, state = linrec.rules.gated_delta_net(q, k, v, g, beta)
assert o.shape == v.shape and o.isfinite().all()
print("cold import ok")
"""


def test_works_without_the_optional_packages() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COLD_IMPORT, ",".join(OPTIONAL)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "cold import ok" in done.stdout


def test_readme_table_is_the_generated_one() -> None:
    from linrec.table import support_table

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- rules:begin -->", "<!-- rules:end -->"
    assert readme.count(begin) == readme.count(end) == 1
    table = readme.split(begin)[1].split(end)[0]
    assert table.strip() == support_table().strip(), "regenerate with: linrec rules --markdown"
